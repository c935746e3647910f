"""Replicas come and go, as the API server's double says: under load no answer is lost or wrong."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal

import httpx
import pytest

from gateway.server import serving
from gateway.settings import Settings
from slipstream.bench.processes import free_address
from slipstream.discovery.fakes import FakeApiServer, endpoint, endpoint_slice
from tests.integration.client import Client
from tests.integration.conftest import TINY
from tests.integration.processes import WAIT_SECONDS, until

CLIENTS = 4
# So long a pod serves on after its slice says that it goes, as the chart lets it.
PRE_STOP_SECONDS = 1.5
# Addresses of pods: each process has a loopback address of its own, and the port of its role.
VERIFIERS = {"v-0": "127.0.0.2", "v-1": "127.0.0.3"}
DRAFTERS = {"d-0": "127.0.0.4", "d-1": "127.0.0.5"}


class Cluster:
    """What kubelet and control plane do: start pods, list those that are ready, stop them."""

    def __init__(self, api, start, model, plan):
        self._api, self._start, self._model = api, start, model
        self._port = {role: free_address().rpartition(":")[2] for role in ("verifier", "drafter")}
        self._pods = {"verifier": {}, "drafter": {}}
        self._options = {
            "verifier": ("--drafter", f"k8s:///drafters:{self._port['drafter']}",
                         "--exactness", "strict", "--stop-grace", "20"),
            "drafter": ("--layer-plan", str(plan)),
        }  # fmt: skip
        self.processes = {}

    @property
    def verifiers(self) -> str:
        return f"k8s:///verifiers:{self._port['verifier']}"

    def begin(self, role, pod, host):
        address = f"{host}:{self._port[role]}"
        options = (*TINY, *self._options[role])
        self.processes[pod] = self._start(role, self._model, options, address)

    async def ready(self, role, *pods):
        for pod in pods:
            await asyncio.to_thread(self.processes[pod].wait_ready)
            self._pods[role][pod] = endpoint(self._host(pod), pod=pod, zone="z")
        self._put(role)

    async def stop(self, role, pod):
        """Terminating in its slice, preStop, SIGTERM, gone from the slice when it has ended."""
        self._pods[role][pod] = endpoint(self._host(pod), pod=pod, terminating=True, serving=True)
        self._put(role)
        await asyncio.sleep(PRE_STOP_SECONDS)
        process = self.processes[pod]
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.process.wait, WAIT_SECONDS) == 0, process.log
        assert "Traceback" not in process.log, process.log
        del self._pods[role][pod]
        self._put(role)

    def _host(self, pod):
        return self.processes[pod].address.rpartition(":")[0]

    def _put(self, role):
        ports = {"grpc": int(self._port[role])}
        pods = list(self._pods[role].values())
        self._api.put(endpoint_slice(f"{role}s", pods, component=role, ports=ports))


def asked(number):
    """One of some requests, greedy and sampled, short and longer."""
    sampled = {"temperature": 1.0, "seed": number} if number % 2 else {"temperature": 0.0}
    tokens = 40 + 30 * (number % 3)
    return {"model": "tiny", "prompt": f"The quick brown fox {number}", "ignore_eos": True,
            "max_tokens": tokens, "stream": True, **sampled}  # fmt: skip


async def text_of(door, body):
    """The text of a stream, which must end as a stream does."""
    text, ended = "", False
    async with door.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            assert not ended
            if line == "data: [DONE]":
                ended = True
                continue
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            text += "".join(choice["text"] for choice in chunk["choices"])
    assert ended
    return text


class Load:
    """Clients that stream one answer after the other, each compared with the undisturbed one."""

    def __init__(self, door, expected):
        self._door, self._expected = door, expected
        self._numbers = itertools.count()
        self.answers = 0

    async def client(self):
        while True:
            number = next(self._numbers) % len(self._expected)
            assert await text_of(self._door, asked(number)) == self._expected[number]
            self.answers += 1

    async def more(self, count, tasks):
        """Until so many more have been answered; fails as soon as one was wrong or lost."""
        wanted = self.answers + count

        def enough():
            for task in tasks:
                if task.done():
                    task.result()
            return self.answers >= wanted

        await until(enough)


@pytest.fixture
def cluster(monkeypatch, start, tiny_model_dir, exact_plan):
    with FakeApiServer() as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
        monkeypatch.setenv("POD_NAMESPACE", "default")
        made = Cluster(api, start, tiny_model_dir, exact_plan)
        yield made
        for process in made.processes.values():
            process.kill()


async def drafter_of(cluster, pod):
    """The pod of the drafter that a verifier has; empty: none."""
    async with Client(cluster.processes[pod].address) as client:
        status = await client.status()
    host = status.drafter_address.rpartition(":")[0] if status.drafter_connected else ""
    return next((pod for pod, where in DRAFTERS.items() if where == host), "")


@pytest.mark.slow
async def test_scaling_and_rollout_under_load(cluster, tiny_model_dir) -> None:
    """Drafters 0 -> 2 -> 1, then one verifier for another, while clients stream: every answer is
    the undisturbed one, and each step has its effect."""
    for role, pods in (("verifier", VERIFIERS), ("drafter", DRAFTERS)):
        for pod, host in pods.items():
            cluster.begin(role, pod, host)
    await cluster.ready("verifier", "v-0")
    settings = Settings(
        model=tiny_model_dir, verifier=cluster.verifiers, http="127.0.0.1:0", grpc="127.0.0.1:0",
        served_model_name="tiny", session_store="off",
    )  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(serving(settings))
        url = f"http://127.0.0.1:{gateway.http_port}"
        door = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60.0))

        async def serves():
            return (await door.get("/ready")).status_code == 200

        await until(serves)
        load = Load(door, [await text_of(door, asked(number)) for number in range(6)])
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(load.client()) for _ in range(CLIENTS)]
        await load.more(CLIENTS, tasks)
        assert not await drafter_of(cluster, "v-0")

        await cluster.ready("drafter", "d-0", "d-1")
        first = ""

        async def paired():
            nonlocal first
            first = await drafter_of(cluster, "v-0")
            return first

        await until(paired)
        await load.more(CLIENTS, tasks)
        [other] = set(DRAFTERS) - {first}
        await cluster.stop("drafter", first)

        async def moved():
            return await drafter_of(cluster, "v-0") == other

        await until(moved)
        await load.more(CLIENTS, tasks)

        await cluster.ready("verifier", "v-1")
        await cluster.stop("verifier", "v-0")
        await load.more(2 * CLIENTS, tasks)

        async def settled():
            """The new verifier has the drafter that is left, and the gateway knows of it alone."""
            ready = (await door.get("/ready")).json()
            hosts = [one["address"].partition(":")[0] for one in ready["verifiers"]]
            well = ready["discovery"][0]["state"] == "ok"
            return well and hosts == ["127.0.0.3"] and await drafter_of(cluster, "v-1") == other

        await until(settled)
        for task in tasks:
            task.cancel()
