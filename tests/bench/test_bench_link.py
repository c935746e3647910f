"""The simulated link: order, delay, bandwidth, and no connection left behind."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from slipstream.bench.link import Link, precise_loop
from slipstream.bench.proxy import Lane
from slipstream.core.errors import ConfigurationError


@asynccontextmanager
async def echo():
    """A server that sends everything back. Yields its address."""

    async def answer(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def connect(address):
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def on_a_precise_loop(body):
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(body)


@pytest.mark.parametrize("milliseconds", [0, 1, 5, 20])
def test_a_round_trip_takes_its_time(milliseconds):
    """A byte there and back takes the round trip, and little more where nobody is in its way."""

    async def body():
        async with echo() as target, Link(milliseconds / 1000) as link:
            reader, writer = await connect(await link.forward(target))
            times, least = [], 1.0
            # Of twenty in a row all but some; on a busy machine others get through sooner.
            deadline = time.perf_counter() + 60
            while len(times) < 20 or least >= milliseconds / 1000 + 0.004:
                assert time.perf_counter() < deadline, times
                started = time.perf_counter()
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                times.append(time.perf_counter() - started)
                least = sorted(times[-20:])[:4][-1]
            writer.close()
            assert milliseconds / 1000 <= min(times) + 1e-4

    on_a_precise_loop(body())


def test_bytes_keep_their_order_and_number():
    """Megabytes written at once come back unchanged over a link whose delay changes meanwhile."""

    async def body():
        sent = bytes(range(256)) * 8192
        async with echo() as target, Link(0.02) as link:
            reader, writer = await connect(await link.forward(target))

            async def write():
                for start in range(0, len(sent), 100_000):
                    writer.write(sent[start : start + 100_000])
                    await writer.drain()
                    link.round_trip = 0.03 - link.round_trip
                writer.write_eof()

            async with asyncio.timeout(60):
                writing = asyncio.create_task(write())
                assert await reader.read(-1) == sent
                await writing
            writer.close()
            assert link.outward.carried == link.homeward.carried == len(sent)

    on_a_precise_loop(body())


def test_delay_does_not_limit_what_is_under_way():
    """A second's worth of small messages over a slow round trip takes one round trip, not one
    each."""

    async def body():
        async with echo() as target, Link(0.1) as link:
            reader, writer = await connect(await link.forward(target))
            started = time.perf_counter()
            for number in range(200):
                writer.write(bytes([number]))
                await writer.drain()
                await asyncio.sleep(0)
            assert await reader.readexactly(200) == bytes(range(200))
            assert 0.1 <= time.perf_counter() - started < 200 * 0.1
            writer.close()

    on_a_precise_loop(body())


def test_bandwidth_is_shared_by_the_connections_of_a_direction():
    """Two connections of 100 kB each over 400 kB/s take what 200 kB take; the way back is free of
    them."""

    async def body():
        async with echo() as target, Link(0.0, 400_000) as link:
            address = await link.forward(target)

            async def send():
                reader, writer = await connect(address)
                writer.write(bytes(100_000))
                writer.write_eof()
                assert len(await reader.read(-1)) == 100_000
                writer.close()

            # A busy machine takes longer now and then; a way back that is not free always would.
            for _ in range(10):
                started = time.perf_counter()
                await asyncio.gather(send(), send())
                taken = time.perf_counter() - started
                assert taken >= 0.5
                if taken < 0.95:
                    break
            assert taken < 0.95

    on_a_precise_loop(body())


def test_a_lane_is_a_queue():
    """Bytes wait for those before them, and none overtakes when the delay falls."""
    lane = Lane()
    assert lane.arrival(1000, 1.0, 0.5, 1000.0) == 2.5
    assert lane.arrival(500, 1.0, 0.5, 1000.0) == 3.0
    assert lane.arrival(0, 2.0, 0.0, None) == 3.0
    assert lane.arrival(1, 9.0, 0.25, None) == 9.25
    assert lane.carried == 1501


def test_both_ends_share_one_cable():
    """What connects from the far end sends homeward; an end that goes away is told to the other."""

    async def body():
        async with echo() as target, Link() as link:
            reader, writer = await connect(await link.forward(target, from_far_end=True))
            writer.write(b"abc")
            writer.write_eof()
            assert await reader.read(-1) == b"abc"
            assert (link.homeward.carried, link.outward.carried) == (3, 3)
            gone = await link.forward("127.0.0.1:1")
            reader, writer = await connect(gone)
            async with asyncio.timeout(60):
                assert await reader.read(-1) == b""
            writer.close()
            for wrong in ("", "host", "host:x"):
                with pytest.raises(ConfigurationError, match="host:port"):
                    await link.forward(wrong)

    on_a_precise_loop(body())
