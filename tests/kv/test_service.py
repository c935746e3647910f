"""KvService over real gRPC: the bytes, both ways that they travel, and pullers that misbehave."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from slipstream.core.errors import (
    InvalidRequest,
    KvExpired,
    KvHolderRestarted,
    KvNotFound,
    ModelMismatch,
)
from slipstream.core.prefix import PrefixChain
from slipstream.engine.kv_rows import as_tensor
from slipstream.wire import shared_memory
from slipstream.wire.kv_client import KvClient
from slipstream.wire.proto import kv_pb2, kv_pb2_grpc
from slipstream.wire.transport import channel
from tests.integration.client import Client, request
from tests.integration.processes import ROOT, until
from tests.kv.rig import rows_of, verifier
from verifier_service.kv_holder import KvHolder

PROMPT = tuple((11 * i) % 90 + 3 for i in range(300))


async def generating(one, prompt=PROMPT, max_tokens: int = 500, *, steps: int | None = None):
    """A task that generates, once its prompt has begun. It stands still behind its first tokens, or
    after so many steps, and so is there however long others take."""
    made = one.engine.counters
    tokens, last = made.generated_tokens + min(4, max_tokens - 1), made.steps + (steps or 0)

    def enough(turn) -> bool:
        if steps is not None:
            return made.steps >= last
        return bool(turn.decoding) and made.generated_tokens >= tokens

    one.stands = enough
    client = Client(one.address)
    asked = request(prompt, max_tokens=max_tokens, speculative=False)
    task = asyncio.create_task(client.generate(asked))
    await until(lambda: one.engine.num_running)
    return task


def go_on(one) -> None:
    """What stood still goes on to its end."""
    one.stands = lambda turn: False


async def acquire(one, client: KvClient, prompt=PROMPT, **how):
    fingerprint = one.engine.runner.loaded.fingerprint
    chain = PrefixChain(fingerprint, prompt)
    length = how.pop("length", len(prompt))
    return await client.acquire(how.pop("model", fingerprint), chain.at(length), **how)


async def pulled(client: KvClient, handle, layers, start, end):
    """All chunks of a range; their bytes are copied, as each is given back."""
    chunks = []
    async for chunk in client.pull(handle, layers, start, end):
        chunks.append((chunk, bytes(chunk.data)))
        chunk.done()
    return chunks


@pytest.fixture
async def client():
    made = []

    def connect(one, **how) -> KvClient:
        made.append(KvClient(one.address, **how))
        return made[-1]

    yield connect
    for each in made:
        await each.close()


@pytest.mark.parametrize("share", [True, False], ids=["shared-memory", "messages"])
async def test_the_verifiers_own_bytes(make_runner, client, monkeypatch, share) -> None:
    """Any layers and range of a prompt that is still being prefilled: the pool's bytes, in chunks
    of bounded size, the same through shared memory (a ring smaller than all of it) and without."""
    monkeypatch.setattr("slipstream.wire.kv_client._CHUNK_BYTES", 8192)
    runner = make_runner()
    async with verifier(runner) as one:
        task = await generating(one)
        puller = client(one, share_memory=share)
        handle = await acquire(one, puller)
        assert handle.layers == (0, 1)
        assert (handle.num_kv_heads, handle.head_dim, handle.dtype) == (2, 8, "float32")
        assert handle.holder == one.address
        for layers, start, end in [((0, 1), 0, 300), ((1,), 7, 299), ((1, 0), 100, 101)]:
            chunks = await pulled(puller, handle, layers, start, end)
            assert [c.start for c, _ in chunks] == [start, *(c.end for c, _ in chunks)][:-1]
            assert chunks[-1][0].end == end
            assert all(len(data) <= 8192 and c.shared == share for c, data in chunks)
            (table,) = [s.table for s in one.engine.kv._running.values()]
            for chunk, data in chunks:
                wanted = rows_of(runner, table, layers, chunk.start, chunk.end)
                assert torch.equal(as_tensor(memoryview(data), "float32"), wanted.flatten())
                assert chunk.prefix == PrefixChain(handle.model_fingerprint, PROMPT).at(chunk.end)
        task.cancel()
        await puller.release(handle)
        await until(lambda: runner.pool.num_used == 0)


async def test_a_buffer_that_cannot_be_opened(make_runner, client, monkeypatch) -> None:
    """A holder that cannot open the puller's memory, or is offered a file of another kind, sends
    messages, and says nothing of it."""
    offers = [
        {"path": "/proc/1/fd/1000", "size": 4096, "token": b"x" * 16},
        {"path": "/etc/passwd", "size": 4096, "token": b"x" * 16},
        {"path": "\0", "size": 4096, "token": b""},
        {"path": "", "size": 1 << 60, "token": b""},
    ]
    ring = shared_memory.OwnRing(8192)
    wrong = ring.offer
    wrong.token = b"y" * 16
    big = ring.offer
    big.size = 1 << 20
    async with verifier(make_runner()) as one, channel(one.address) as link:
        task = await generating(one)
        handle = await acquire(one, client(one))
        stub = kv_pb2_grpc.KvServiceStub(link)
        for offer in [*(kv_pb2.SharedBuffer(**each) for each in offers), wrong, big]:
            call = stub.Pull(
                kv_pb2.PullRequest(
                    id=handle.id, incarnation=handle.incarnation, layers=[0], end=20, shared=offer
                ),
                timeout=60,
            )
            assert [chunk.WhichOneof("payload") async for chunk in call] == ["data"]
        task.cancel()
    ring.close()


async def test_unsealed_memory_is_not_written(tmp_path) -> None:
    """Memory that its maker could take away under the writer is not used."""
    descriptor = os.memfd_create("slipstream-kv", os.MFD_ALLOW_SEALING)
    os.truncate(descriptor, 3 * 4096)
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    offer = kv_pb2.SharedBuffer(path=path, size=4096, token=bytes(16))
    assert shared_memory.open_ring(offer) is None
    os.close(descriptor)


def test_the_ring() -> None:
    """Pieces stand in one piece each, never over one that was not read, for any sizes."""
    own = shared_memory.OwnRing(1000)
    ring = shared_memory.open_ring(own.offer)
    assert ring is not None
    written, waiting = 0, []
    for turn in range(500):
        size = (turn * 37) % 400 + 1
        while (place := ring.place(written, size)) is None:
            offset, length, value, count = waiting.pop(0)
            assert (own.data[offset : offset + length] == value).all()
            own.set_read(count)
        offset, written = place
        assert offset + size <= 1000
        ring.data[offset : offset + size] = turn % 251
        waiting.append((offset, size, turn % 251, written))
    assert ring.place(written, 1001) is None
    # With nothing unread there is room for a piece that does not fit behind the last one.
    own.set_read(600)
    assert ring.place(600, 700) == (0, 1700)
    assert ring.place(1700, 1) is None
    own.close()


async def test_what_is_refused(make_runner, client) -> None:
    """Another model, an unknown prefix, a released lease, another life of the holder, layers and
    ranges that are not there: each with an error of its own kind."""
    async with verifier(make_runner()) as one:
        task = await generating(one)
        puller = client(one)
        with pytest.raises(ModelMismatch):
            await acquire(one, puller, model="another")
        with pytest.raises(KvNotFound):
            await acquire(one, puller, prompt=(1, 2, 3))
        with pytest.raises(InvalidRequest):
            await acquire(one, puller, lease_seconds=float("nan"))
        handle = await acquire(one, puller, length=100, lease_seconds=10_000.0)
        assert await puller.renew(handle, 5.0) == handle.expiry
        for layers, start, end in [((7,), 0, 10), ((0,), 0, 101), ((), 0, 10), ((0,), 5, 5)]:
            with pytest.raises(InvalidRequest):
                await pulled(puller, handle, layers, start, end)
        one.kv._incarnation = "second life"
        for call in (pulled(puller, handle, (0,), 0, 10), puller.renew(handle, 1.0)):
            with pytest.raises(KvHolderRestarted):
                await call
        await puller.release(handle)
        one.kv._incarnation = "first life"
        assert one.engine.kv.num_leases == 1
        await puller.release(handle)
        with pytest.raises(KvExpired):
            await pulled(puller, handle, (0,), 0, 10)
        assert one.engine.kv.num_leases == 0
        task.cancel()


async def test_a_sequence_that_ends_in_mid_pull(make_runner, client) -> None:
    """Positions that will never come end the pull with an error, those after the known range
    without one."""
    long = tuple((11 * i) % 90 + 3 for i in range(900))  # prefilled in four steps
    async with verifier(make_runner()) as one:
        task = await generating(one, long, max_tokens=9, steps=1)
        puller = client(one)
        handle = await acquire(one, puller, long)
        pulling = asyncio.create_task(pulled(puller, handle, (0,), 0, 900))
        await until(lambda: one.engine.kv._pulls)
        task.cancel()
        with pytest.raises(KvExpired):
            await pulling
        task = await generating(one, max_tokens=4)
        handle = await acquire(one, puller)
        positions = []
        async for chunk in puller.pull(handle, (0,), 0, 300, follow=True):
            positions.append((chunk.start, chunk.end, chunk.shared))
            chunk.done()
            go_on(one)
        assert positions[0] == (0, 300, True)
        assert positions[-1][1] in (302, 303)
        assert not any(shared for _, _, shared in positions[1:])
        await task


async def test_a_pull_that_is_cancelled_before_it_begins(make_runner, client, monkeypatch) -> None:
    """Its lease is gone by then: a failure that nobody waits for, and nobody complains about."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    async with verifier(make_runner()) as one:
        task = await generating(one, max_tokens=200)
        puller = client(one)
        handle = await acquire(one, puller)
        asked: list[object] = []
        go, call = threading.Event(), one.engine.call
        monkeypatch.setattr(one.engine, "call", lambda act: asked.append(act) or call(act))
        one.engine.post(lambda: go.wait(60))
        one.engine.post(lambda: one.engine.kv.release(handle.id))
        pulling = asyncio.create_task(pulled(puller, handle, (0,), 0, 300))
        await until(lambda: len(asked) == 2)  # its beginning, and the first read
        pulling.cancel()
        await until(lambda: len(asked) == 3)  # its end
        go.set()
        await one.on_engine(lambda kv: None)
        del pulling
        asked.clear()
        gc.collect()
        assert not complaints
        task.cancel()


async def test_a_puller_that_stops_reading(make_runner, client, monkeypatch) -> None:
    """A puller that gives nothing back blocks itself alone, and when it leaves all is freed."""
    monkeypatch.setattr("slipstream.wire.kv_client._CHUNK_BYTES", 4096)
    runner = make_runner()
    async with verifier(runner, pause=0.0) as one:
        task = await generating(one, max_tokens=100)
        puller, good = client(one), client(one)
        handle = await acquire(one, puller)
        taken = []

        async def hoard() -> None:
            async for chunk in puller.pull(handle, (0, 1), 0, 300):
                taken.append(chunk)  # noqa: PERF401 one by one: the last never comes

        hoarding = asyncio.create_task(hoard())
        await until(lambda: len(taken) == 4)
        assert len(await pulled(good, await acquire(one, good), (0, 1), 0, 300)) == 19
        go_on(one)
        assert len((await task).tokens) == 100
        assert len(taken) == 4
        assert one.engine.kv._pulls
        hoarding.cancel()
        await until(lambda: not one.engine.kv._pulls)
        for lease in list(one.engine.kv._leases):
            await one.on_engine(lambda kv, lease=lease: kv.release(lease))
        assert runner.pool.num_used == 0


PULLER = """
import asyncio, sys
from slipstream.wire.kv_client import KvClient
from slipstream.core.prefix import Prefix

async def main(address, model, length, name):
    client = KvClient(address)
    prefix = Prefix(int(length), bytes.fromhex(name))
    handle = await client.acquire(model, prefix, lease_seconds=30.0)
    async for chunk in client.pull(handle, handle.layers, 0, int(length), follow=True):
        print("shared" if chunk.shared else "message", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def _memory_files() -> int:
    """How many of our kind of memory this process and its children hold open or mapped.

    Others on the machine may be tests that come and go with memory of their own.
    """
    # A mapping ends with the last array of it, which a cycle of an earlier test may keep.
    gc.collect()
    found = 0
    children = [f.read_text().split() for f in Path("/proc/self/task").glob("*/children")]
    for process in (Path("/proc", name) for name in itertools.chain(["self"], *children)):
        try:
            found += (process / "maps").read_text().count("memfd:slipstream-kv")
            found += sum(
                "memfd:slipstream-kv" in str(entry.readlink())
                for entry in (process / "fd").iterdir()
            )
        except OSError:
            continue
    return found


async def test_a_caller_that_leaves_before_its_grant(make_runner, client) -> None:
    """A lease whose caller left while it was made: nobody could release it, so it is taken back."""
    async with verifier(make_runner()) as one:
        task, made, go_on = await generating(one), threading.Event(), threading.Event()
        really = one.engine.kv.acquire

        def slowly(*how):
            lease = really(*how)
            made.set()
            assert go_on.wait(60)
            return lease

        one.engine.kv.acquire = slowly
        asking = asyncio.create_task(acquire(one, client(one)))
        await until(made.is_set)
        asking.cancel()
        # The engine's thread is held up: what is posted now waits.
        await until(lambda: one.engine._inbox)
        assert one.engine.kv.num_leases == 1
        go_on.set()
        await until(lambda: not one.engine.kv.num_leases)
        task.cancel()


async def test_a_puller_that_is_killed(make_runner) -> None:
    """SIGKILL in mid-pull: its lease expires, its pull ends, and no memory of it is left."""
    runner, late = make_runner(), []
    before = _memory_files()
    holder = KvHolder(runner, clock=lambda: time.time() + 31.0 * len(late))
    async with verifier(runner, holder=holder) as one:
        task = await generating(one)
        name = PrefixChain(runner.loaded.fingerprint, PROMPT).at(300).hash.hex()
        arguments = [one.address, runner.loaded.fingerprint, "300", name]
        process = subprocess.Popen(  # noqa: ASYNC220 it only begins here
            [sys.executable, "-c", PULLER, *arguments], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        try:
            assert process.stdout is not None
            assert (await asyncio.to_thread(process.stdout.readline)).strip() == "shared"
            assert one.engine.kv._pulls
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait, 60)
        finally:
            process.kill()
            process.wait(60)
        task.cancel()
        await until(lambda: not one.engine.kv._pulls)
        assert one.engine.kv.num_leases == 1
        late.append(1)
        await until(lambda: not one.engine.kv.num_leases)
        await until(lambda: runner.pool.num_used == 0)
    assert _memory_files() <= before
