"""What came behind a prefix, taken piece by piece."""

from __future__ import annotations

import asyncio

import torch

from drafter_service.kv_fetch import Fetch
from drafter_service.kv_source import Want
from slipstream.core.kv import KvChunk
from slipstream.core.params import SamplingParams
from slipstream.engine.sequence import Sequence
from tests.kv.rig import rows_of


async def test_a_chunk_that_is_taken_in_two_parts(make_runner) -> None:
    """Of a chunk that goes further than the other shards have come, what is agreed is taken at
    once, and the rest when they are there."""
    runner = make_runner()
    sequence = Sequence(range(3, 30), 16, SamplingParams(), runner.loaded.fingerprint)
    table = sequence.table = runner.pool.allocate(32)
    assert table is not None
    want = Want(1, sequence.chain.at(16), follow=True)
    fetch = Fetch(
        runner,
        sequence,
        32,
        want,
        source=lambda: None,
        loop=asyncio.get_running_loop(),
        post=lambda action: action(),
        heard=lambda arrival: None,
    )
    rows = torch.randn(2, 2, 6, 2, 8)
    given_back: list[int] = []
    data = memoryview(rows.numpy().tobytes())
    prefix = sequence.chain.at(22)
    chunk = KvChunk(16, 22, prefix, (0, 1), "float32", data, lambda: given_back.append(1))
    fetch._arrived(chunk)
    fetch.take(16, 19)
    assert not given_back
    assert torch.equal(rows_of(runner, table, (0, 1), 16, 19), rows[:, :, :3])
    fetch.take(19, 22)
    assert given_back == [1]
    assert torch.equal(rows_of(runner, table, (0, 1), 16, 22), rows)
    runner.pool.release(table)
