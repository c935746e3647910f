"""Asks the pods of a release, all at once, each within a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from datetime import datetime

import grpc
import httpx

from slipstream.cli.k8s.api import Cluster, Object
from slipstream.cli.k8s.port_forward import forwarded
from slipstream.cli.k8s.release import (
    Release,
    condition,
    gpus,
    is_ready,
    moment,
    name_of,
    port_of,
    role_of,
)
from slipstream.cli.k8s.told import Told
from slipstream.wire import tls
from slipstream.wire.proto import (
    drafter_pb2,
    drafter_pb2_grpc,
    verifier_pb2,
    verifier_pb2_grpc,
)
from slipstream.wire.transport import channel

_SECONDS = 10.0


class Reach:
    """The way to pods.

    Args:
        forward: through the API server, else straight to their addresses.
    """

    def __init__(self, cluster: Cluster, namespace: str, *, forward: bool) -> None:
        self._cluster, self._namespace, self._forward = cluster, namespace, forward

    @contextlib.contextmanager
    def to(self, pod: Object, port: int, told: Told) -> Iterator[str]:
        """host:port while the block runs; in the end `told` has what went wrong on the way."""
        if not self._forward:
            host = f"[{told.address}]" if ":" in told.address else told.address
            yield f"{host}:{port}"
            return
        with forwarded(self._cluster, self._namespace, name_of(pod), port) as way:
            yield way.address
        if told.failure and way.failure:
            told.failure = way.failure


async def ask_all(release: Release, reach: Reach, now: datetime) -> list[Told]:
    """What every running pod of our services says."""
    zones = {
        address: str(each.get("zone", ""))
        for one in release.of("endpointslices")
        for each in one.get("endpoints") or ()
        for address in each["addresses"]
    }
    running = [
        pod
        for pod in release.service_pods()
        if pod.get("status", {}).get("phase") == "Running"
        and pod["status"].get("podIP")
        and (is_ready(pod) or role_of(pod) == "gateway")
        and not pod["metadata"].get("deletionTimestamp")
    ]
    return list(await asyncio.gather(*(_ask(pod, zones, reach, now) for pod in running)))


async def _ask(pod: Object, zones: dict[str, str], reach: Reach, now: datetime) -> Told:
    address, role = str(pod["status"]["podIP"]), role_of(pod)
    told = Told(
        name_of(pod),
        role,
        address,
        gpus(pod["spec"]),
        zones.get(address, ""),
        _running_seconds(pod, now),
    )
    ask = {"gateway": _gateway, "verifier": _verifier, "drafter": _drafter}[role]
    port = port_of(pod["spec"], "http" if role == "gateway" else "grpc")
    if not port:
        told.failure = "its container names no such port"
        return told
    try:
        async with asyncio.timeout(_SECONDS):
            with reach.to(pod, port, told) as where:
                await _recorded(ask(where, told), told)
    except TimeoutError:
        told.failure = told.failure or f"no answer within {_SECONDS:g} s"
    return told


async def _recorded(asking: Awaitable[None], told: Told) -> None:
    """Waits for the answers; what fails is told instead of raised."""
    try:
        await asking
    except grpc.aio.AioRpcError as failure:
        details = failure.details() or failure.code().name
        if failure.code() is grpc.StatusCode.UNIMPLEMENTED and told.role == "drafter":
            told.shard = True
        else:
            told.failure = tls.refusal(details) or details
    except (httpx.HTTPError, ValueError) as failure:
        told.failure = str(failure) or type(failure).__name__


async def _verifier(where: str, told: Told) -> None:
    async with channel(where, connect_seconds=_SECONDS) as link:
        stub = verifier_pb2_grpc.VerifierServiceStub(link)
        told.model = await stub.GetModel(verifier_pb2.GetModelRequest(), timeout=_SECONDS)
        told.status = await stub.GetStatus(verifier_pb2.GetStatusRequest(), timeout=_SECONDS)


async def _drafter(where: str, told: Told) -> None:
    async with channel(where, connect_seconds=_SECONDS) as link:
        stub = drafter_pb2_grpc.DrafterServiceStub(link)
        told.drafter = await stub.GetDrafter(drafter_pb2.GetDrafterRequest(), timeout=_SECONDS)


async def _gateway(where: str, told: Told) -> None:
    async with httpx.AsyncClient(timeout=_SECONDS, trust_env=False) as http:
        response = await http.get(f"http://{where}/ready")
        answer = response.json()
        if response.status_code not in {200, 503} or not isinstance(answer, dict):
            raise ValueError(f"/ready answers with status {response.status_code}")
        told.ready = answer


def _running_seconds(pod: Object, now: datetime) -> float:
    stamp = condition(pod, "Ready").get("lastTransitionTime") or pod["status"].get("startTime")
    if not stamp:
        return 0.0
    return (now - moment(str(stamp))).total_seconds()
