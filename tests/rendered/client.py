"""A client of the release's gateways, and what its pods say of themselves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.rendered.container import Container
from tests.rendered.pod import Pod

_SECONDS = 60.0


def request(**more: Any) -> dict[str, Any]:
    """A completion at temperature 1, the same each time."""
    prompt = "The quick brown fox jumps over"
    usual = {"model": "tiny", "prompt": prompt, "max_tokens": 32, "temperature": 1.0, "seed": 11}
    return {**usual, **more}


def _http(**options: Any) -> httpx.AsyncClient:
    """All is plain HTTP: without TLS it is made in no time."""
    return httpx.AsyncClient(timeout=_SECONDS, trust_env=False, verify=False, **options)


class Client:
    """Of one gateway pod.

    Args:
        key: the API key; empty: none.
    """

    def __init__(self, gateway: Pod, key: str = "") -> None:
        self._url = f"http://{gateway.ip}:8000"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        async with self._open() as client:
            return await client.post(path, json=body)

    async def get(self, path: str) -> httpx.Response:
        async with self._open() as client:
            return await client.get(path)

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """The texts of a completion as they come. Raises AssertionError: it broke off."""
        ended = False
        async with self._open() as client:
            wanted = {**body, "stream": True}
            async with client.stream("POST", "/v1/completions", json=wanted) as answer:
                assert answer.status_code == 200, (await answer.aread()).decode()
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line.removeprefix("data: "))
                        assert "error" not in event, line
                        for choice in event["choices"]:
                            yield choice["text"]
                    ended = ended or line == "data: [DONE]"
        assert ended, "the stream has no end"

    def _open(self) -> httpx.AsyncClient:
        return _http(base_url=self._url, headers=self._headers)


async def paired(client: Client) -> bool:
    """Whether the gateway has heard that every verifier has its drafter."""
    verifiers = (await client.get("/ready")).json()["verifiers"]
    return bool(verifiers) and all(one["drafter"]["connected"] for one in verifiers)


async def metric(pod: Pod, name: str) -> float:
    """What the pod says at its port for metrics."""
    port = pod.main.ports["metrics"]
    async with _http() as client:
        text = (await client.get(f"http://{pod.ip}:{port}/metrics")).text
    (value,) = (line.split()[-1] for line in text.splitlines() if line.startswith(name + "{"))
    return float(value)


async def watched(container: Container) -> list[tuple[bool, bool]]:
    """(ready, alive) as its probes find it, again and again until its process has ended. Where its
    port is closed already it is not asked whether it is alive: a kubelet asks no pod that goes."""
    found: list[tuple[bool, bool]] = []
    while True:
        ready, alive = await asyncio.gather(container.ask("readiness"), container.ask("liveness"))
        # It may have been asked in the moment in which it went.
        well = alive.good or alive.refused > 0
        if await container.running.wait(0.01 if well else 1.0) is not None:
            return found
        found.append((ready.good, well))
        await asyncio.sleep(0.05)
