"""The fault proxy: each fault does what it says, to the direction it names, until healed."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from slipstream.bench.faults import FaultProxy
from slipstream.core.errors import ConfigurationError
from tests.integration.processes import until

SENT = bytes(range(256)) * 64
WAIT_SECONDS = 60


@asynccontextmanager
async def echo():
    """A server that sends everything back. Yields its address."""

    async def answer(reader, writer):
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture
async def proxy():
    async with echo() as target, FaultProxy(target, seed=3) as proxy:
        await proxy.start()
        yield proxy


@asynccontextmanager
async def connected(proxy):
    host, _, port = proxy.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            yield reader, writer
    finally:
        writer.transport.abort()


async def there_and_back(proxy, sent=SENT):
    """What comes back of it, over a connection of its own."""
    async with connected(proxy) as (reader, writer):
        writer.write(sent)
        return await reader.readexactly(len(sent))


def flips(received, sent=SENT):
    """Where bits differ."""
    assert len(received) == len(sent)
    return [
        (place, ours ^ theirs)
        for place, (ours, theirs) in enumerate(zip(sent, received, strict=True))
        if ours != theirs
    ]


async def test_without_orders_it_carries(proxy):
    """Bytes come back, are counted, and the end of a connection arrives."""
    async with connected(proxy) as (reader, writer):
        writer.write(SENT)
        writer.write_eof()
        assert await reader.read(-1) == SENT
    assert proxy.outward.lane.carried == proxy.homeward.lane.carried == len(SENT)
    assert (proxy.counters.taken, proxy.counters.ended) == (1, 0)
    with pytest.raises(ConfigurationError, match="host:port"):
        await FaultProxy("nowhere").start()


async def test_it_listens_where_it_is_told(proxy):
    """So that a service's address can stay the same while proxies come and go."""
    address = proxy.address
    await proxy.close()
    async with echo() as target, FaultProxy(target) as other:
        assert await other.start(address) == address
        assert await there_and_back(other) == SENT
        with pytest.raises(OSError, match="in use"):
            await FaultProxy(target).start(address)


@pytest.mark.parametrize("how", ["reset", "end"])
async def test_cut(proxy, how):
    """Connections end, by a reset or in order; new ones are taken."""
    async with connected(proxy) as (reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        assert proxy.cut(how) == 1
        if how == "reset":
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
        else:
            assert await reader.read(1) == b""
    assert proxy.cut(how) == 0
    assert proxy.counters.ended == 1
    assert await there_and_back(proxy) == SENT


async def test_pause_holds_bytes_back(proxy):
    """They arrive afterwards, all of them and in order, also where the pause ends by itself."""
    async with connected(proxy) as (reader, writer):
        for seconds in (None, 0.05):
            proxy.pause(seconds)
            writer.write(SENT)
            reading = asyncio.create_task(reader.readexactly(len(SENT)))
            if seconds is None:
                carried = proxy.outward.lane.carried
                await until(lambda carried=carried: proxy.outward.lane.carried == carried + 16384)
                assert proxy.homeward.lane.carried == 0
                proxy.heal()
            assert await reading == SENT
    assert proxy.outward.dropped == 0


@pytest.mark.parametrize("direction", ["outward", "homeward", "both"])
async def test_freeze_is_half_open(proxy, direction):
    """Nothing arrives, not even that the client left; connections that lost bytes are reset when it
    is over, those that did not are as they were."""
    async with connected(proxy) as (idle, idle_writer), connected(proxy) as (reader, writer):
        await until(lambda: len(proxy.connections) == 2)
        proxy.freeze(direction=direction)
        writer.write(SENT)
        away = proxy.homeward if direction == "homeward" else proxy.outward
        await until(lambda: away.dropped == len(SENT))
        async with connected(proxy) as (_, leaving):
            # It is taken, too.
            await until(lambda: len(proxy.connections) == 3)
            leaving.write(b"x")
            await until(lambda: away.dropped == len(SENT) + 1)
        assert len(proxy.connections) == 3 or direction == "homeward"
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        idle_writer.write(SENT)
        assert await idle.readexactly(len(SENT)) == SENT
    assert await there_and_back(proxy) == SENT


async def test_a_freeze_ends_by_itself(proxy):
    """After the seconds given, of which the last order counts."""
    async with connected(proxy) as (reader, writer):
        proxy.freeze(1000)
        writer.write(b"x")
        await until(lambda: proxy.outward.dropped == 1)
        proxy.freeze(0.05)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
    assert await there_and_back(proxy) == SENT
    assert proxy.outward.dropped == 1


async def test_refuse(proxy):
    """New connections are reset, old ones stay."""
    async with connected(proxy) as (reader, writer):
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        proxy.refuse()
        async with connected(proxy) as (refused, _):
            with pytest.raises(ConnectionResetError):
                await refused.read(1)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
    assert proxy.counters.refused == 1
    proxy.refuse(refusing=False)
    assert await there_and_back(proxy) == SENT


async def test_delay_and_bandwidth(proxy):
    """Each takes at least its time."""
    proxy.delay(0.05)
    started = time.monotonic()
    await there_and_back(proxy)
    assert time.monotonic() - started >= 0.099
    proxy.heal()
    proxy.limit(100_000, "homeward")
    started = time.monotonic()
    await there_and_back(proxy)
    # The last of its pieces waits for those before it.
    assert time.monotonic() - started >= len(SENT) / 100_000 - 0.001


async def test_jitter_keeps_the_order(proxy):
    """Bytes that chance delays differently do not overtake each other."""
    proxy.delay(0.0, jitter=0.01)
    async with connected(proxy) as (reader, writer):
        for number in range(100):
            writer.write(bytes([number]))
            await asyncio.sleep(0)
        assert await reader.readexactly(100) == bytes(range(100))


async def test_corrupt_flips_bits_at_its_rate(proxy):
    """One bit in a byte, in about as many as were asked for, in the direction named alone."""
    sent = SENT * 16
    proxy.corrupt(per_kib=1.0, direction="homeward")
    found = flips(await there_and_back(proxy, sent), sent)
    assert 180 < len(found) < 340  # of 256; six times the standard deviation is 96
    assert all(bit.bit_count() == 1 for _, bit in found)
    assert len({bit for _, bit in found}) == 8
    assert (proxy.homeward.flipped, proxy.outward.flipped) == (len(found), 0)
    proxy.corrupt(0)
    assert flips(await there_and_back(proxy)) == []


async def test_corruption_depends_on_the_seed_alone():
    """Proxies of a seed flip the same bits however the bytes came; another seed flips others."""

    async def run(seed, step):
        async with echo() as target, FaultProxy(target, seed) as proxy:
            await proxy.start()
            proxy.corrupt(per_kib=2.0, direction="outward")
            async with connected(proxy) as (reader, writer):
                received = b""
                for start in range(0, len(SENT), step):
                    piece = SENT[start : start + step]
                    writer.write(piece)
                    received += await reader.readexactly(len(piece))
            return flips(received)

    first = await run(1, 100)
    assert len(first) > 5
    assert await run(1, 4096) == first
    assert await run(2, 100) != first


async def test_corrupt_once(proxy):
    """Exactly one bit, of the byte that was named, then none."""
    for after in (0, 7, 10_000):
        proxy.corrupt_once(after)
        ((place, bit),) = flips(await there_and_back(proxy))
        assert place == after
        assert bit.bit_count() == 1
        assert flips(await there_and_back(proxy)) == []
    proxy.corrupt_once(len(SENT) + 5)
    assert flips(await there_and_back(proxy)) == []
    ((place, _),) = flips(await there_and_back(proxy))
    assert place == 5
    assert (proxy.outward.flipped, proxy.homeward.flipped) == (4, 0)


async def test_closing_leaves_no_connection():
    """Whatever fault is on."""
    async with echo() as target:
        proxy = FaultProxy(target)
        await proxy.start()
        proxy.freeze()
        proxy.pause()
        async with connected(proxy) as (reader, writer):
            writer.write(b"x")
            await until(lambda: proxy.outward.dropped == 1)
            await proxy.close()
            assert proxy.connections == set()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
