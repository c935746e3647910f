"""A pod: volumes, init containers one after the other, then its containers, then the end of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from slipstream.core.settings import cache_folder
from tests.rendered.container import Container, Pace
from tests.rendered.environment import EnvironmentReader
from tests.rendered.manifests import Failed, Manifests, Object
from tests.rendered.process import Process
from tests.rendered.translation import Names, Translation
from tests.rendered.volumes import Volumes

_INIT_SECONDS = 60.0


@dataclass(frozen=True)
class Surroundings:
    """What all pods of a release share.

    Attributes:
        folder: for the files of the pods.
        kubeconfig: the API server of a service account.
    """

    manifests: Manifests
    names: Callable[[], Names]
    folder: Path
    pace: Pace
    kubeconfig: Callable[[str], Path]


@dataclass
class Ended:
    """How a pod went: exit codes by container (None: killed), and the seconds that it took."""

    codes: dict[str, int | None]
    seconds: float
    grace: float


@dataclass(eq=False)
class Pod:
    """One pod, which has its address already.

    Args:
        body: its object: metadata, spec and `status.podIP`.
        owner: the workload that it is of.
        zone: of its node.
        claims: names of the PersistentVolumeClaims that were made for it.
        changed: called whenever its readiness may have changed.
    """

    body: Object
    owner: str
    zone: str
    around: Surroundings
    changed: Callable[[], None]
    claims: tuple[str, ...] = ()
    terminating: bool = False
    failure: Failed | None = None
    containers: list[Container] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name: str = self.body["metadata"]["name"]
        self.ip: str = self.body["status"]["podIP"]
        self.labels: dict[str, str] = self.body["metadata"].setdefault("labels", {})
        # A successor may have the same name.
        self.folder = self.around.folder / self.body["metadata"]["uid"]
        self._came = asyncio.Event()

    @property
    def ready(self) -> bool:
        return bool(self.containers) and all(each.ready for each in self.containers)

    @property
    def grace(self) -> float:
        return float(self.body["spec"].get("terminationGracePeriodSeconds", 30))

    @property
    def main(self) -> Container:
        return self.containers[0]

    async def start(self) -> None:
        """Returns when its containers run, ready or not. Raises Failed."""
        try:
            first, then = self.prepared()
            for container in first:
                await self._init(container)
            self.containers = then
            for container in then:
                await container.start()
        except Failed as failure:
            self._fail(failure)
            raise

    def prepared(self) -> tuple[list[Container], list[Container]]:
        """Init containers, and the others; nothing runs yet. Raises Failed."""
        claims, manifests = self.around.folder / "claims", self.around.manifests
        volumes = Volumes(self.name, manifests, self.folder, claims, self.claims, self.body)
        spec = self.body["spec"]
        first = [self._container(each, volumes) for each in spec.get("initContainers") or []]
        return first, [self._container(each, volumes) for each in spec["containers"]]

    async def wait_ready(self, seconds: float) -> None:
        """Raises Failed: it cannot get there, or not in time."""
        deadline = time.monotonic() + seconds
        while not self.ready:
            if self.failure is not None:
                raise self.failure
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                tails = "\n".join(each.running.tail for each in self.containers)
                message = f"not ready after {seconds:.0f} s:\n{tails}"
                raise Failed(self.name, "DeadlineExceeded", message) from None

    async def complete(self, seconds: float) -> tuple[int, str]:
        """For a pod that ends by itself: exit code and output of its (only) container. Each has so
        many seconds. Raises Failed."""
        first, (container,) = self.prepared()
        for each in first:
            await self._init(each, seconds)
        return await self._to_its_end(container, seconds)

    async def stop(self) -> Ended:
        """As the deletion of a pod: out of the endpoints, preStop, SIGTERM, SIGKILL."""
        began, self.terminating = time.monotonic(), True
        for each in self.containers:
            each.stop_liveness()
        self._note()
        codes = await asyncio.gather(*(each.stop(self.grace) for each in self.containers))
        named = {each.spec["name"]: code for each, code in zip(self.containers, codes, strict=True)}
        return Ended(named, time.monotonic() - began, self.grace)

    async def close(self) -> None:
        self.terminating = True
        for each in self.containers:
            each.stopping = True
        await asyncio.gather(*(each.close() for each in self.containers))

    def _note(self) -> None:
        self._came.set()
        self.changed()

    def _fail(self, failure: Failed) -> None:
        self.failure = self.failure or failure
        self._note()

    async def _init(self, container: Container, seconds: float = _INIT_SECONDS) -> None:
        if container.spec.get("restartPolicy") == "Always":
            raise Failed(container.where, "Init:Error", "sidecars are not known here")
        code, output = await self._to_its_end(container, seconds)
        if code != 0:
            message = f"ended with exit code {code}:\n{output}"
            raise Failed(container.where, "Init:Error", message)

    async def _to_its_end(self, container: Container, seconds: float) -> tuple[int, str]:
        process = await Process.start(
            container.where, container.command, container.environment, container.folder
        )
        try:
            code = await process.wait(seconds)
        finally:
            await process.kill()
        if code is None:
            message = f"did not end within {seconds:.0f} s:\n{process.tail}"
            raise Failed(container.where, "DeadlineExceeded", message)
        return code, process.tail

    def _container(self, spec: Object, volumes: Volumes) -> Container:
        where = f"{self.name}/{spec['name']}"
        mounts = volumes.mounts(spec)
        translation = Translation(where, self.ip, mounts, self.around.names())
        translation.files()
        reader = EnvironmentReader(self.around.manifests, self.body)
        values = reader.of(spec)
        environment = translation.environment(values)
        if self._has_token():
            account = self.body["spec"].get("serviceAccountName", "default")
            environment["KUBECONFIG"] = str(self.around.kubeconfig(account))
        self._share_kernels(values, translation)
        return Container(
            where=where,
            spec=spec,
            command=translation.command(reader.command(spec, values)),
            environment=environment,
            translation=translation,
            folder=self.folder / f"{spec['name']}.cwd",
            pace=self.around.pace,
            changed=self._note,
            failed=self._fail,
        )

    def _has_token(self) -> bool:
        said = self.body["spec"].get("automountServiceAccountToken")
        if said is None:
            name = self.body["spec"].get("serviceAccountName", "default")
            account = self.around.manifests.find("ServiceAccount", name) or {}
            said = account.get("automountServiceAccountToken", True)
        return bool(said)

    @staticmethod
    def _share_kernels(values: dict[str, str], translation: Translation) -> None:
        cache = translation.mounts.under(values.get("SLIPSTREAM_CACHE", ""))
        if cache is not None and not (cache / "kernels").exists():
            kernels = cache_folder() / "kernels"
            kernels.mkdir(parents=True, exist_ok=True)
            cache.mkdir(parents=True, exist_ok=True)
            (cache / "kernels").symlink_to(kernels)
