"""Leases by the names of blocks: whatever the pool has of a prefix, whoever computed it."""

from __future__ import annotations

import pytest
import torch

from slipstream.core.errors import KvExpired, KvNotFound, ModelMismatch
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.prefix import Prefix, PrefixChain
from slipstream.engine.kv_pool import BLOCK_TOKENS
from slipstream.engine.kv_rows import as_tensor
from slipstream.wire.kv_client import KvClient
from tests.integration.client import Client, request
from tests.kv.rig import rows_of, verifier
from tests.kv.test_holder import PROMPT, HolderRig
from verifier_service.kv_identity import kv_identity
from verifier_service.kv_lease import Lease, Read
from verifier_service.plan import Limits


@pytest.fixture
def runner(make_runner):
    made = make_runner(blocks=60)
    yield made
    made.pool.forget()
    assert made.pool.num_used == 0


def names_of(rig: HolderRig, tokens, count: int | None = None) -> tuple[bytes, ...]:
    chain = rig.chain(tokens)
    ends = range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS)
    return tuple(chain.at(end).hash for end in ends)[:count]


def lease(rig: HolderRig, tokens=PROMPT) -> Lease:
    return rig.kv.acquire_blocks(names_of(rig, tokens), 10.0)


def test_of_a_running_sequence_what_it_has_computed(runner) -> None:
    """While a prompt is prefilled in chunks of a block: its blocks so far, which stay when it
    ends, and can be read with the names of their ends."""
    rig = HolderRig(runner)
    outcome = rig.submit(PROMPT, max_tokens=8)
    with pytest.raises(KvNotFound):
        lease(rig)
    rig.steps(2)
    granted = lease(rig)
    assert granted.prefix == rig.chain(PROMPT).at(32)
    table = next(iter(rig.kv._running.values())).table
    before = rows_of(runner, table, (0, 1), 0, 32).clone()
    outcome.cancel()
    rig.steps(1)
    assert runner.pool.num_used == rig.kv.num_kept == 2
    reads = [rig.read(granted, start, end) for start, end in ((0, 16), (16, 20), (20, 32))]
    rig.kv.serve()
    rows = [read.done.result() for read in reads]
    assert [r.prefix.hash for r in rows] == [
        rig.chain(PROMPT).at(16).hash,
        b"",
        granted.prefix.hash,
    ]
    data = [as_tensor(memoryview(r.data.numpy()), "float32").view(2, 2, -1, 2, 8) for r in rows]
    assert torch.equal(torch.cat(data, dim=2), before)
    rig.kv.release(granted.id)
    assert runner.pool.num_used == 0


def test_of_the_cache_and_of_leases(runner) -> None:
    """What nobody holds any more, and what a lease alone keeps, is granted as well, as far as the
    texts agree; what was evicted is not."""
    rig = HolderRig(runner)
    rig.submit(PROMPT, max_tokens=2, ignore_eos=True)
    rig.finish()
    other = (*PROMPT[:20], *range(60, 90))
    first = lease(rig, other)
    assert first.prefix == rig.chain(PROMPT).at(16)
    whole = lease(rig)
    assert whole.prefix == rig.chain(PROMPT).at(48)
    assert rig.kv.acquire(rig.chain(PROMPT).at(32), None, 10.0).prefix.length == 32
    with pytest.raises(KvNotFound):
        rig.kv.acquire(rig.chain(PROMPT).at(33), None, 10.0)
    runner.pool.forget()
    assert lease(rig).prefix.length == 48
    for each in list(rig.kv._leases):
        rig.kv.release(each)
    runner.pool.forget()
    with pytest.raises(KvNotFound):
        lease(rig)


def test_what_the_answer_was_computed_as(runner) -> None:
    """Where bits depend on the shape, rows of an answer are granted to nobody; else they are."""
    lengths = []
    for limits in (Limits(prefill_chunk=16, strict=True), Limits()):
        rig = HolderRig(runner, limits=limits)
        outcome = rig.submit(PROMPT[:40], max_tokens=40, ignore_eos=True)
        rig.finish()
        granted = lease(rig, (*PROMPT[:40], *outcome.tokens))
        lengths.append(granted.prefix.length)
        rig.kv.release(granted.id)
        runner.pool.forget()
    assert lengths == [32, 64]


def test_another_salt_has_other_names(runner) -> None:
    """What was computed under a salt is not granted to who asks without it."""
    rig = HolderRig(runner)
    rig.submit(PROMPT, max_tokens=2, cache_salt="mine")
    rig.finish()
    with pytest.raises(KvNotFound):
        lease(rig)


def test_they_count_for_no_share_and_give_way_all_the_same(runner) -> None:
    """However little leases may keep, one on blocks is granted and does not cost others theirs; a
    request that needs the room gets it."""
    rig = HolderRig(runner, share=0.05, chunk=64)  # 3 blocks
    short = rig.submit(PROMPT[:40], max_tokens=60, ignore_eos=True)
    long = tuple(4 + i % 60 for i in range(300))
    rig.submit(long, max_tokens=2, ignore_eos=True)
    rig.steps(9)
    kept = rig.lease(PROMPT[:40])
    short.cancel()
    rig.steps(1)
    granted = [lease(rig, long) for _ in range(3)]
    assert {each.prefix.length for each in granted} == {256}
    assert not any(each.gone for each in (kept, *granted))
    rig.submit(tuple(8 + i % 60 for i in range(50 * 16)), max_tokens=5)
    rig.finish()
    assert all(each.gone for each in (kept, *granted))


def test_reading_on_behind_them_ends_at_once(runner) -> None:
    """Nothing follows blocks that nobody computes any more."""
    rig = HolderRig(runner)
    rig.submit(PROMPT, max_tokens=2)
    rig.finish()
    granted = lease(rig)
    read = rig.read(granted, 48, None)
    rig.kv.serve()
    assert read.done.result() is None
    late = Read(read.key, 40, 49)
    rig.kv.read(late)
    rig.kv.release(granted.id)
    rig.kv.serve()
    assert isinstance(late.done.exception(), KvExpired)


async def test_over_the_wire(make_runner, monkeypatch) -> None:
    """A client gets a lease by names and pulls it in chunks that end at blocks' borders wherever
    a chunk holds one; other blocks, another computation and unknown names are refused."""
    runner = make_runner()
    tokens = tuple((11 * i) % 90 + 3 for i in range(300))
    monkeypatch.setattr("slipstream.wire.kv_client._CHUNK_BYTES", 40 * 256)
    limits = Limits(prefill_chunk=32, strict=True)
    async with verifier(runner, limits=limits, pause=0.0) as one:
        async with Client(one.address) as asking:
            await asking.generate(request(tokens, max_tokens=3))
        chain = PrefixChain(runner.loaded.fingerprint, tokens)
        names = [chain.at(end).hash for end in range(16, 301, 16)]
        client, own = KvClient(one.address), kv_identity(runner, limits)
        handle = await client.acquire_blocks(own, names, 16)
        assert handle.prefix == chain.at(288)
        assert handle.model_fingerprint == own
        got = []
        async for chunk in client.pull(handle, (0, 1), 16, 288):
            assert chunk.prefix == chain.at(chunk.end)
            got.append(chunk.end - chunk.start)
            chunk.done()
        assert sum(got) == 272
        assert set(got[:-1]) == {32}
        with pytest.raises(KvNotFound, match="16 tokens here"):
            await client.acquire_blocks(own, names, 32)
        with pytest.raises(KvNotFound):
            await client.acquire_blocks(own, [bytes(16), *names], 16)
        other = kv_identity(runner, Limits())
        for identity in (other, runner.loaded.fingerprint, ""):
            with pytest.raises(ModelMismatch):
                await client.acquire_blocks(identity, names, 16)
        with pytest.raises(ModelMismatch):
            await client.acquire(own, Prefix(16, names[0]))
        await client.release(handle)
        await client.close()


def test_what_is_another_function_has_another_name(make_runner) -> None:
    """Type, precision and exactness are parts of the name; two alike have the same."""
    native = make_runner()
    limits = (Limits(), Limits(strict=True), Limits(strict=True, mixed_rows=64))
    names = {kv_identity(native, each) for each in limits}
    plan = LayerPlan(precision="w8a8", head_precision="w8a8")
    names |= {kv_identity(make_runner(plan, dtype="bfloat16"), limits[0])}
    names |= {kv_identity(native, Limits(strict=True, prefill_chunk=32))}
    assert len(names) == 5
    assert kv_identity(make_runner(), limits[1]) == kv_identity(native, limits[1])
