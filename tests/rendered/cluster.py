"""The controllers: from workloads to pods, from pods to EndpointSlices, and rollouts."""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.rendered.checks import check
from tests.rendered.container import Container, Pace
from tests.rendered.endpoints import endpoint_slice
from tests.rendered.manifests import Failed, Manifests, Object
from tests.rendered.network import Network, names_of
from tests.rendered.pod import Ended, Pod, Surroundings
from tests.rendered.translation import Names

_ZONES = ("zone-a", "zone-b")


class Api(Protocol):
    """The API server, as pods see it and as controllers write to it."""

    def publish(self, item: Object) -> None:
        """Creates or replaces an object."""

    def kubeconfig(self, account: str) -> Path:
        """For a service account."""


@dataclass(frozen=True)
class NoApi:
    """For pods that ask it nothing."""

    folder: Path

    def publish(self, item: Object) -> None:
        pass

    def kubeconfig(self, account: str) -> Path:
        return self.folder / account


class Cluster:
    """One release on this machine.

    Args:
        folder: for logs and volumes; new.
    """

    def __init__(
        self, manifests: Manifests, folder: Path, api: Api | None = None, pace: Pace | None = None
    ) -> None:
        self.manifests, self.folder = manifests, folder
        self.pods: list[Pod] = []
        self._api = api or NoApi(folder)
        self._network = Network.take()
        self._turn = itertools.count()
        self._around = Surroundings(
            manifests, self._current_names, folder, pace or Pace(), self._api.kubeconfig
        )

    def of(self, owner: str) -> list[Pod]:
        """The pods of a workload that are not going, oldest first."""
        return [p for p in self.pods if p.owner == owner and not p.terminating]

    def pod(self, name: str) -> Pod:
        return next(pod for pod in self.pods if pod.name == name)

    async def start(self, seconds: float, *, only: Sequence[str] = ()) -> None:
        """All workloads, or those named, until every pod is ready.

        Raises:
            Failed: what went wrong first.
        """
        check(self.manifests)
        self._publish()
        owners = [o for o in self.manifests.workloads if not only or o["metadata"]["name"] in only]
        try:
            async with asyncio.TaskGroup() as group:
                for owner in owners:
                    group.create_task(self._roll_in(owner, seconds))
        except ExceptionGroup as failures:
            raise _first(failures) from None

    async def close(self) -> None:
        await asyncio.gather(*(pod.close() for pod in self.pods))
        self._network.close()

    async def stop(self) -> dict[str, Ended]:
        """All pods at once, as `helm uninstall`."""
        going = [pod for pod in self.pods if not pod.terminating]
        return dict(
            zip([p.name for p in going], await asyncio.gather(*map(self.end, going)), strict=True)
        )

    async def end(self, pod: Pod) -> Ended:
        """Deletes a pod; it is out of the endpoints when it has ended."""
        ended = await pod.stop()
        self.pods.remove(pod)
        self._publish()
        return ended

    async def surge(self, deployment: str, seconds: float) -> None:
        """One pod more, as a rollout of a Deployment begins."""
        await self._one(self._owner(deployment), next(self._turn), seconds)

    async def roll(self, pod: Pod, seconds: float) -> Ended:
        """One pod of a rollout: a Deployment's successor comes first, a StatefulSet's later."""
        owner = self._owner(pod.owner)
        if owner["kind"] == "Deployment":
            await self.surge(pod.owner, seconds)
            return await self.end(pod)
        ended = await self.end(pod)
        await self._one(owner, int(pod.labels["apps.kubernetes.io/pod-index"]), seconds)
        return ended

    async def run_hook(self, hook: Object, seconds: float) -> tuple[int, str]:
        """A pod that helm makes and waits for: exit code and output."""
        return await self._to_its_end(hook["metadata"]["name"], hook, seconds)

    async def run_job(self, job: Object, seconds: float) -> tuple[int, str]:
        """The pod of a Job, once: exit code and output of its container.

        Raises:
            Failed: it cannot start, or an init container ended with an error.
        """
        name = job["metadata"]["name"]
        return await self._to_its_end(f"{name}-x7k2p", job["spec"]["template"], seconds)

    def containers(self, workload: str) -> dict[str, Container]:
        """Of a pod that would start now, with its volumes, by their names; none of them runs.

        Raises:
            Failed: it could not start.
        """
        made = self._made(self._owner(workload), 0).prepared()
        return {each.spec["name"]: each for part in made for each in part}

    def failures(self) -> list[Failed]:
        return [pod.failure for pod in self.pods if pod.failure is not None]

    def _owner(self, name: str) -> Object:
        return next(o for o in self.manifests.workloads if o["metadata"]["name"] == name)

    async def _roll_in(self, owner: Object, seconds: float) -> None:
        spec = owner["spec"]
        began = time.monotonic()
        counts = [next(self._turn) for _ in range(spec.get("replicas", 1))]
        if owner["kind"] == "StatefulSet":
            counts = list(range(spec.get("replicas", 1)))
            if spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady":
                for ordinal in counts:
                    await self._one(owner, ordinal, began + seconds - time.monotonic())
                return
        await asyncio.gather(*(self._one(owner, count, seconds) for count in counts))

    async def _to_its_end(self, name: str, template: Object, seconds: float) -> tuple[int, str]:
        pod = self._pod(name, name, template, 0, self._network.other())
        return await pod.complete(seconds)

    def _made(self, owner: Object, count: int) -> Pod:
        if owner["kind"] == "StatefulSet":
            return self._ordinal(owner, count)
        template, name = owner["spec"]["template"], owner["metadata"]["name"]
        return self._pod(name, f"{name}-7d4b9c-{count}", template, count, self._network.other())

    async def _one(self, owner: Object, count: int, seconds: float) -> None:
        pod = self._made(owner, count)
        self.pods.append(pod)
        await pod.start()
        await pod.wait_ready(seconds)

    def _pod(self, owner: str, name: str, template: Object, count: int, address: str) -> Pod:
        body = copy.deepcopy({"metadata": template["metadata"], "spec": template["spec"]})
        body["metadata"] |= {"name": name, "namespace": self.manifests.namespace}
        body["metadata"]["uid"] = f"{name}.{next(self._turn)}"
        body["spec"]["nodeName"] = f"node-{count % len(_ZONES)}"
        body["spec"].setdefault("serviceAccountName", "default")
        body["status"] = {"podIP": address, "hostIP": "192.0.2.2"}
        return Pod(body, owner, _ZONES[count % len(_ZONES)], self._around, self._publish)

    def _ordinal(self, owner: Object, ordinal: int) -> Pod:
        name = owner["metadata"]["name"]
        address = self._network.of_ordinal(name, ordinal)
        pod = self._pod(name, f"{name}-{ordinal}", owner["spec"]["template"], ordinal, address)
        pod.labels["apps.kubernetes.io/pod-index"] = str(ordinal)
        pod.labels["statefulset.kubernetes.io/pod-name"] = pod.name
        pod.body["spec"]["hostname"] = pod.name
        volumes = pod.body["spec"].setdefault("volumes", [])
        for template in owner["spec"].get("volumeClaimTemplates") or []:
            volume = template["metadata"]["name"]
            claim = f"{volume}-{pod.name}"
            pod.claims += (claim,)
            volumes.append({"name": volume, "persistentVolumeClaim": {"claimName": claim}})
        return pod

    def _current_names(self) -> Names:
        return names_of(self.manifests, self._network, self.pods)

    def _publish(self) -> None:
        for service in self.manifests.of("Service"):
            found = endpoint_slice(service, self.pods)
            found["metadata"]["namespace"] = self.manifests.namespace
            self._api.publish(found)


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = failures.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
