"""Probes as a kubelet makes them: real gRPC health checks, HTTP, TCP and commands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.rendered.manifests import Object

_LEAST_SECONDS = 20.0
SERVING = health_pb2.HealthCheckResponse.SERVING
# In the container's environment; returns the exit code and what it wrote.
Run = Callable[[Sequence[str], float], Awaitable[tuple[int | None, str]]]


@dataclass(frozen=True)
class Answer:
    """What one probe found.

    Attributes:
        hopeless: asking again cannot help: what is asked for is not there.
        refused: the port that nobody listens on, 0 where somebody does.
    """

    good: bool
    message: str = ""
    hopeless: bool = False
    refused: int = 0


@dataclass(frozen=True)
class Probe:
    """One probe of a container, with Kubernetes' defaults."""

    kind: str
    spec: Object
    ip: str
    ports: Mapping[str, int]

    @property
    def period(self) -> float:
        return float(self.spec.get("periodSeconds", 10))

    @property
    def timeout(self) -> float:
        """On a busy machine an answer may take longer than a cluster's probes allow."""
        return max(_LEAST_SECONDS, float(self.spec.get("timeoutSeconds", 1)))

    @property
    def failures(self) -> int:
        return int(self.spec.get("failureThreshold", 3))

    @property
    def successes(self) -> int:
        return int(self.spec.get("successThreshold", 1))

    @property
    def delay(self) -> float:
        return float(self.spec.get("initialDelaySeconds", 0))

    async def ask(self, run: Run) -> Answer:
        """Asks once. `run` is for probes that are commands."""
        if "grpc" in self.spec:
            return await self._grpc(self.spec["grpc"])
        if "httpGet" in self.spec:
            return await self._http(self.spec["httpGet"])
        if "tcpSocket" in self.spec:
            return await self._tcp(self.spec["tcpSocket"])
        code, output = await run(self.spec["exec"]["command"], self.timeout)
        return Answer(code == 0, f"exit code {code}: {output}", hopeless=code in (126, 127))

    def _port(self, given: Any) -> int:
        """A number, or a name of one of the container's ports; 0 where there is no such name."""
        return self.ports.get(given, 0) if isinstance(given, str) else int(given)

    async def _grpc(self, spec: Object) -> Answer:
        port, service = int(spec["port"]), spec.get("service") or ""
        what = f'gRPC health of "{service}" at port {port}'
        async with grpc.aio.insecure_channel(f"{self.ip}:{port}", _NO_PROXY) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                request = health_pb2.HealthCheckRequest(service=service)
                found = await stub.Check(request, timeout=self.timeout)
            except grpc.aio.AioRpcError as error:
                absent = error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)
                refused = port if "refused" in (error.details() or "").lower() else 0
                said = f"{what}: {error.code().name} {error.details()}"
                return Answer(False, said, hopeless=absent, refused=refused)
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(found.status)
        return Answer(found.status == SERVING, f"{what}: {name}")

    async def _http(self, spec: Object) -> Answer:
        port = self._port(spec["port"])
        if not port:
            return Answer(False, f'the container has no port "{spec["port"]}"', hopeless=True)
        url = f"{spec.get('scheme', 'HTTP').lower()}://{self.ip}:{port}{spec.get('path', '/')}"
        headers = {header["name"]: header["value"] for header in spec.get("httpHeaders") or []}
        # A kubelet believes any certificate, too.
        async with httpx.AsyncClient(timeout=self.timeout, trust_env=False, verify=False) as client:
            try:
                found = await client.get(url, headers=headers)
            except httpx.ConnectError as error:
                return Answer(False, f"{url}: {error}", refused=port)
            except httpx.HTTPError as error:
                return Answer(False, f"{url}: {error!r}")
        good = 200 <= found.status_code < 400
        absent = found.status_code in (401, 403, 404, 405)
        return Answer(good, f"{url}: {found.status_code} {found.text[:300]}", hopeless=absent)

    async def _tcp(self, spec: Object) -> Answer:
        port = self._port(spec["port"])
        if not port:
            return Answer(False, f'the container has no port "{spec["port"]}"', hopeless=True)
        try:
            async with asyncio.timeout(self.timeout):
                _, writer = await asyncio.open_connection(self.ip, port)
        except ConnectionRefusedError:
            return Answer(False, f"port {port}: connection refused", refused=port)
        except (OSError, TimeoutError) as error:
            return Answer(False, f"port {port}: {error!r}")
        writer.close()
        return Answer(True)


_NO_PROXY = [("grpc.enable_http_proxy", 0)]


def probes_of(container: Object, ip: str) -> dict[str, Probe]:
    """By their kinds: startup, readiness, liveness."""
    ports = {p["name"]: p["containerPort"] for p in container.get("ports") or [] if "name" in p}
    return {
        kind: Probe(kind, container[f"{kind}Probe"], ip, ports)
        for kind in ("startup", "readiness", "liveness")
        if f"{kind}Probe" in container
    }
