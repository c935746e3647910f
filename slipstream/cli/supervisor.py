"""Keeps a few processes running together: started, watched, restarted, stopped in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from slipstream.cli.child import Child, Say
from slipstream.cli.stages import heard
from slipstream.core.errors import ConfigurationError, DeadlineExceeded, InternalError


@dataclass(frozen=True, slots=True)
class Service:
    """One process to keep: its command, and how to ask whether it serves.

    Attributes:
        vital: whether all is over without it; else it is started again for as long as it takes.
    """

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[], Awaitable[bool]]
    vital: bool = True


@dataclass(frozen=True, slots=True)
class Policy:
    """Times in seconds.

    Attributes:
        ready: how long all services together may take to serve.
        poll: between two questions whether a service serves.
        grace: how long a service may take to stop before it is killed.
        quick: an end sooner than this after the start is a quick death.
        backoff: wait before the first restart; doubles with each quick death in a row.
        max_backoff: the longest such wait.
        quick_deaths: give up after so many in a row of a vital service.
    """

    ready: float = 600.0
    poll: float = 0.25
    grace: float = 15.0
    quick: float = 30.0
    backoff: float = 0.5
    max_backoff: float = 60.0
    quick_deaths: int = 5

    def pause(self, quick: int) -> float:
        """Seconds before the restart after so many quick deaths in a row."""
        # The exponent is bounded, too: deaths go on, and floats do not.
        return min(self.backoff * 2.0 ** min(max(0, quick - 1), 32), self.max_backoff)


class Supervisor:
    """Runs services until told to stop. Owns its child processes: none outlives `run`."""

    def __init__(self, services: Sequence[Service], say: Say, policy: Policy | None = None) -> None:
        self._services = list(services)
        self._say = say
        self._policy = policy or Policy()
        self._children: dict[str, Child] = {}
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._sockets: dict[str, str] = {}
        self._ready = False

    def stop(self) -> None:
        """Asks for an orderly stop; asked a second time, it kills what is left at once."""
        if self._stop.is_set():
            self._hurry.set()
        elif self._ready:
            self._say("Stopping, once requests in progress are over or out of time; again: at once")
        self._stop.set()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Starts all services, calls `on_ready` once all serve, returns after `stop`.

        Services are stopped in the reverse of their order.

        Raises:
            ConfigurationError: a service ended before all were ready; its last lines are in it.
            DeadlineExceeded: they were not all ready in time.
            InternalError: a vital service died again and again.
        """
        names = [service.name for service in self._services]
        async with heard(names, self._told) as self._sockets:
            await self._run(on_ready)

    async def _run(self, on_ready: Callable[[], None]) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            for service in self._services:
                await self._start(service)
            stopping = asyncio.create_task(self._wait_for_stop())
            starting = asyncio.create_task(self._until_ready())
            tasks = [stopping, starting]
            await _first(tasks)
            if self._stop.is_set():
                return
            self._ready = True
            on_ready()
            tasks = [stopping, *(asyncio.create_task(self._keep(s)) for s in self._services)]
            await _first(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stop_all()

    async def _wait_for_stop(self) -> None:
        await self._stop.wait()

    def _told(self, name: str, stage: str) -> None:
        """A start is what somebody waits for; a restart is told of in other words."""
        if not self._ready and not self._stop.is_set():
            self._say(f"[{name}] {stage}")

    async def _start(self, service: Service) -> Child:
        # Empty is none: the socket of whoever started us is not for our services.
        variables = {"NOTIFY_SOCKET": self._sockets.get(service.name, "")}
        child = await Child.start(service.name, service.command, self._say, variables)
        self._children[service.name] = child
        return child

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + self._policy.ready
        waiting = list(self._services)
        while waiting:
            for child in self._children.values():
                if child.ended:
                    raise ConfigurationError(_last_words(child, await child.wait()))
            if time.monotonic() > deadline:
                names = ", ".join(service.name for service in waiting)
                raise DeadlineExceeded(f"not ready after {self._policy.ready:.0f} s: {names}")
            answers = await asyncio.gather(*(service.is_ready() for service in waiting))
            waiting = [s for s, ready in zip(waiting, answers, strict=True) if not ready]
            if waiting:
                await asyncio.sleep(self._policy.poll)

    async def _keep(self, service: Service) -> None:
        """Restarts the service whenever it ends; returns only by raising InternalError."""
        policy = self._policy
        quick, pause = 0, 0.0
        while True:
            child = self._children[service.name]
            how = await child.wait()
            # Workers that it left behind would hold its port.
            child.kill()
            quick = quick + 1 if time.monotonic() - child.started < policy.quick else 0
            if service.vital and quick >= policy.quick_deaths:
                raise InternalError(
                    f"giving up after {quick} quick deaths: {_last_words(child, how)}"
                )
            before, pause = pause, policy.pause(quick)
            # Once the pause has reached its bound, every further death is the same story.
            if quick <= 1 or pause > before:
                self._say(_restarting(service, how, quick, pause))
            await asyncio.sleep(pause)
            await self._start_again(service)

    async def _start_again(self, service: Service) -> None:
        """Raises ConfigurationError where a vital service cannot be started; others wait."""
        while True:
            try:
                await self._start(service)
                return
            except ConfigurationError as failure:
                if service.vital:
                    raise
                self._say(f"{failure.message}; trying again in {self._policy.max_backoff:g} s")
            await asyncio.sleep(self._policy.max_backoff)

    async def _stop_all(self) -> None:
        ends = [self._end(service) for service in reversed(self._services)]
        if self._ready:
            for end in ends:
                await end
        else:
            # Nobody has been served yet, so there is no order to keep.
            await asyncio.gather(*ends)

    async def _end(self, service: Service) -> None:
        child = self._children.get(service.name)
        if child is not None and not await child.stop(self._policy.grace, self._hurry):
            late = "had not stopped yet" if self._hurry.is_set() else "did not stop in time"
            self._say(f"the {service.name} {late} and was killed")


async def _first(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Returns when one of the tasks has ended; raises what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def _restarting(service: Service, how: str, quick: int, pause: float) -> str:
    line = f"the {service.name} {how}; starting it again in {pause:g} s"
    if service.vital or quick <= 1:
        return line
    return f"{line} ({quick} quick deaths in a row; answers come without drafts until it stays)"


def _last_words(child: Child, how: str) -> str:
    tail = [line for line in child.tail if line.strip()][-5:]
    return f"the {child.name} {how}" + "".join(f"\n  {line}" for line in tail)
