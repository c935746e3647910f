"""Real gRPC over a network that flips bits: an answer is right, or the call fails as it should."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import grpc
from google.protobuf.wrappers_pb2 import BytesValue

from slipstream.bench.faults import FaultProxy
from slipstream.core.errors import DeadlineExceeded, Unavailable
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel
from tests.wire.echo import Echo, Stub, serve_plain, serve_sealed

CALLERS, CALLS = 4, 150
DEADLINE_SECONDS = 0.5


async def _ask(link: grpc.aio.Channel, proxy: FaultProxy, seed: int, tally: Counter[str]) -> None:
    source, stub = random.Random(seed), Stub(link)
    for _ in range(CALLS):
        value = source.randbytes(300)
        try:
            answer = await stub.unary_unary(
                BytesValue(value=value), timeout=DEADLINE_SECONDS, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as failure:
            error = error_of(failure)
            tally[error.code] += 1
            tally["worth another try"] += isinstance(error, Unavailable | DeadlineExceeded)
            if isinstance(error, DeadlineExceeded):
                # A frame that seems longer than it is holds up its connection.
                proxy.cut()
        else:
            # gRPC gives out None where it cannot read a message.
            tally["right" if answer is not None and answer.value == value else "wrong"] += 1


async def _outcomes(serve, connect) -> Counter[str]:
    """How many calls ended how, over a link that flips a bit in 10 KiB."""
    tally: Counter[str] = Counter()
    async with serve(Echo()) as target, FaultProxy(target, seed=1) as proxy:
        address = await proxy.start()
        proxy.corrupt(per_kib=0.1)
        async with connect(address) as link:
            await asyncio.gather(*(_ask(link, proxy, seed, tally) for seed in range(CALLERS)))
        assert proxy.outward.flipped > 5
        assert proxy.homeward.flipped > 5
    return tally


async def test_a_sealed_answer_is_right_or_none() -> None:
    """Of many calls over damaging links none has a wrong answer; most failures tell that another
    try is worth it, some that it was damage."""
    tally = await _outcomes(serve_sealed, channel)
    assert tally["wrong"] == 0
    assert tally["right"] > 50
    assert tally["corrupted"] > 5
    assert tally["worth another try"] > 5 * tally["internal_error"]


async def test_without_seals_wrong_answers_get_through() -> None:
    """The same links, clients and calls without seals: so the test above can fail."""
    tally = await _outcomes(serve_plain, grpc.aio.insecure_channel)
    assert tally["wrong"] > 5
    assert tally["corrupted"] == 0
