"""One container of a pod: its process, and whether its probes call it started and ready."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.rendered.manifests import Failed, Object
from tests.rendered.probes import Answer, Probe, probes_of
from tests.rendered.process import Process
from tests.rendered.translation import Translation

_LOOK_SECONDS = 0.1
_MOST_PER_LOOK = 0.5


@dataclass(frozen=True)
class Pace:
    """How a release is watched here.

    Attributes:
        speed: startup and readiness are asked so many times as often as rendered, and preStop
            sleeps so much shorter. How long a start may take, how many failures count and how long
            a process has from SIGTERM on stays as rendered; and how often liveness is asked: on a
            busy machine a short look would kill.
        patience: seconds for which nobody may be found at a port while its container listens at
            others, and does nothing: on a busy machine it may be about to. Kubernetes has no such
            bound; here it tells a wrong port early.
    """

    speed: float = 10.0
    patience: float = 15.0


@dataclass
class Container:
    """Starts with `start`; `failed` is called at most once, with what Kubernetes would show.

    Attributes:
        history: (what, whether it is so now), in order: "started", "ready".
        terminated_at: when it got SIGTERM, as `time.monotonic` counts.
    """

    where: str
    spec: Object
    command: Sequence[str]
    environment: Mapping[str, str]
    translation: Translation
    folder: Path
    pace: Pace
    changed: Callable[[], None]
    failed: Callable[[Failed], None]
    started: bool = False
    ready: bool = False
    stopping: bool = False
    terminated_at: float = math.inf
    process: Process | None = None
    history: list[tuple[str, bool]] = field(default_factory=list)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _deaf: float = 0.0
    _looked_at: float = 0.0

    @property
    def running(self) -> Process:
        assert self.process is not None, f"{self.where} was not started"
        return self.process

    @property
    def ports(self) -> dict[str, int]:
        """Those that it declares, by name."""
        return {port["name"]: port["containerPort"] for port in self.spec.get("ports") or []}

    @property
    def probes(self) -> dict[str, Probe]:
        return probes_of(self.spec, self.translation.ip)

    async def start(self) -> None:
        self.process = await Process.start(self.where, self.command, self.environment, self.folder)
        self._tasks["exit"] = asyncio.create_task(self._exit())
        self._tasks["probes"] = asyncio.create_task(self._probe())

    async def run(self, command: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """A command of a probe or a hook; its exit code (None: not in time) and output."""
        inner = await asyncio.create_subprocess_exec(
            *self.translation.command(command),
            env=self.environment,
            cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(inner.communicate(), seconds)
        except TimeoutError:
            inner.kill()
            await inner.wait()
            return None, "timed out"
        return inner.returncode, output.decode(errors="replace").strip()[-500:]

    async def ask(self, kind: str) -> Answer:
        """One probe, out of turn."""
        return await self.probes[kind].ask(self.run)

    def stop_liveness(self) -> None:
        """A kubelet asks a pod that is going for its readiness alone."""
        self.stopping = True
        if "liveness" in self._tasks:
            self._tasks["liveness"].cancel()

    async def stop(self, seconds: float) -> int | None:
        """preStop, SIGTERM and, when `seconds` less the hook's time are over, SIGKILL.

        Returns:
            The exit code; None where it had to be killed.
        """
        hook = await self._pre_stop(seconds)
        self.terminated_at = time.monotonic()
        self.running.terminate()
        # Kubernetes adds two seconds where a hook took them all.
        code = await self.running.wait(max(2.0, seconds - hook))
        await self.close()
        return code

    async def close(self) -> None:
        """Ends it without any manners; also where it was never started."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self.process is not None:
            await self.process.kill()
        self._set(started=self.started, ready=False)

    async def _pre_stop(self, seconds: float) -> float:
        """The seconds that it takes in a cluster."""
        hook = (self.spec.get("lifecycle") or {}).get("preStop") or {}
        began = time.monotonic()
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"] / self.pace.speed)
            return float(hook["sleep"]["seconds"])
        if "exec" in hook:
            code, output = await self.run(hook["exec"]["command"], seconds)
            if code != 0:
                self.failed(Failed(self.where, "FailedPreStopHook", f"{code}: {output}"))
        elif hook:
            self.failed(Failed(self.where, "FailedPreStopHook", f"{list(hook)} is not known here"))
        return time.monotonic() - began

    async def _exit(self) -> None:
        code = await self.running.inner.wait()
        if not self.stopping:
            message = f"ended with exit code {code}:\n{self.running.tail}"
            self.failed(Failed(self.where, "Error", message))

    async def _probe(self) -> None:
        probes = self.probes
        if "startup" in probes:
            await self._startup(probes["startup"])
        await self._all_ports_open()
        self._set(started=True, ready="readiness" not in probes)
        if "liveness" in probes:
            self._tasks["liveness"] = asyncio.create_task(self._liveness(probes["liveness"]))
        if "readiness" in probes:
            await self._readiness(probes["readiness"])

    async def _all_ports_open(self) -> None:
        """A declared port that nobody listens at is where Services and Prometheus are sent to."""
        self._deaf, missing = 0.0, set(self.ports.values())
        while missing:
            there = self.running.listening(self.translation.ip)
            missing -= set(there)
            if missing and there and self._is_deaf():
                message = f"declares the ports {self.ports} and listens at {there} only"
                self.failed(Failed(self.where, "PortClosed", message))
                return
            await asyncio.sleep(_LOOK_SECONDS if missing else 0)

    async def _startup(self, probe: Probe) -> None:
        await asyncio.sleep(probe.delay / self.pace.speed)
        until = time.monotonic() + probe.delay + probe.period * probe.failures
        while not (answer := await self._asked(probe)).good:
            if time.monotonic() > until:
                self._unhealthy(probe, answer.message)
            await asyncio.sleep(probe.period / self.pace.speed)

    async def _readiness(self, probe: Probe) -> None:
        await asyncio.sleep(probe.delay / self.pace.speed)
        good = bad = 0
        while True:
            answer = await self._asked(probe)
            good, bad = (good + 1, 0) if answer.good else (0, bad + 1)
            if good >= probe.successes:
                self._set(started=True, ready=True)
            elif bad >= probe.failures:
                self._set(started=True, ready=False)
            await asyncio.sleep(probe.period / self.pace.speed)

    async def _liveness(self, probe: Probe) -> None:
        await asyncio.sleep(probe.delay)
        bad = 0
        while bad < probe.failures:
            answer = await self._asked(probe)
            bad = 0 if answer.good else bad + 1
            await asyncio.sleep(probe.period)
        self._unhealthy(probe, answer.message)

    async def _asked(self, probe: Probe) -> Answer:
        """Tells of what cannot get better by asking again, while the process is to be there."""
        answer = await probe.ask(self.run)
        if self.stopping or answer.good:
            return answer
        if answer.hopeless:
            self._unhealthy(probe, answer.message)
        open_ports = self.running.listening(self.translation.ip)
        if answer.refused and open_ports and answer.refused not in open_ports:
            if self._is_deaf():
                message = f"{answer.message}; the container listens on {open_ports}"
                self._unhealthy(probe, message)
        else:
            self._deaf = 0.0
        return answer

    def _is_deaf(self) -> bool:
        """Whether a port that it should listen at was closed in many looks, while it was idle."""
        since, self._looked_at = self._looked_at, time.monotonic()
        if not self.running.busy:
            # We may have been held up ourselves.
            self._deaf += min(self._looked_at - since, _MOST_PER_LOOK)
        return self._deaf > self.pace.patience

    def _unhealthy(self, probe: Probe, message: str) -> None:
        tail = self.running.tail
        self.failed(Failed(self.where, "Unhealthy", f"{probe.kind} probe: {message}\n{tail}"))
        raise asyncio.CancelledError

    def _set(self, *, started: bool, ready: bool) -> None:
        for what, now in (("started", started), ("ready", ready)):
            if getattr(self, what) != now:
                setattr(self, what, now)
                self.history.append((what, now))
        self.changed()
