"""Guarded stores whose servers hang, die, change, and come back."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from redis.crc import key_slot

from slipstream.bench.faults import FaultProxy
from slipstream.bench.redis_server import RedisSentinel, RedisServer
from slipstream.core.errors import StoreUnavailable
from slipstream.store import Append, Document, GuardedStore, open_store
from tests.store.conftest import cluster_url
from tests.store.waiting import eventually, patiently

LONG = 60.0


@pytest.fixture
def server(tmp_path):
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


async def guarded(url, timeout=0.25):
    guard = GuardedStore(
        open_store(url, timeout=30), timeout, probe=0.02, probe_most=0.1, watch=0.2
    )
    await guard.start()
    return guard


@pytest.fixture
async def guard(server):
    guard = await guarded(server.url)
    await eventually(lambda: guard.state == "ok")
    yield guard
    await guard.close()


async def fails_in_time(guard):
    """Calls until the breaker opens; none takes longer than its deadline."""
    while guard.state == "ok":
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await guard.put("k", b"lost", ttl=LONG)
        # A busy core's own delays are not the store's.
        assert time.monotonic() - began < 10
    began = time.monotonic()
    for _ in range(200):
        with pytest.raises(StoreUnavailable, match="unavailable"):
            await guard.get("k")
    assert time.monotonic() - began < 10


async def is_back(guard):
    await eventually(lambda: guard.state == "ok")
    assert await patiently(guard.put, "k", b"again", ttl=LONG) >= 1


async def test_a_server_that_hangs(server, guard):
    """Under SIGSTOP every call ends in time, soon at once; after SIGCONT the store is back."""
    server.pause()
    # Many at a time, as of many requests: no connection is left out of step by it.
    calls = [guard.get("k") for _ in range(40)]
    began = time.monotonic()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - began < 10
    assert all(isinstance(failure, StoreUnavailable) for failure in found)
    await fails_in_time(guard)
    assert "no answer" in guard.detail
    server.resume()
    await is_back(guard)
    for number in range(20):
        value = b"%d" % number
        await patiently(guard.put, f"k{number}", value, ttl=LONG)
        assert (await patiently(guard.get, f"k{number}")).value == value


async def test_a_server_that_dies_and_comes_back_empty(server, guard):
    """SIGKILL is noticed without calls; a new server on the port is found, and is used, empty."""
    await patiently(guard.put, "k", b"v", ttl=LONG)
    server.kill()
    await eventually(lambda: guard.state == "degraded")
    assert "cannot be reached" in guard.detail
    await fails_in_time(guard)
    server.start()
    await eventually(lambda: guard.state == "ok")
    assert await patiently(guard.get, "k") is None


async def test_down_at_the_start(server):
    """A gateway that starts before Redis is degraded until it is there."""
    server.kill()
    guard = await guarded(server.url)
    assert guard.state == "degraded"
    assert "cannot be reached" in guard.detail
    server.start()
    await is_back(guard)
    await guard.close()


async def test_a_slow_server(server):
    """Answers that come after seconds are none; when they come in time again, the store is back."""
    async with FaultProxy(server.address) as proxy:
        guard = await guarded(f"redis://{await proxy.start()}")
        await eventually(lambda: guard.state == "ok")
        proxy.delay(2.0, direction="outward")
        await fails_in_time(guard)
        proxy.heal()
        await is_back(guard)
        await guard.close()


async def test_a_server_that_refuses_writes(server, guard):
    """A replica, and a full server, are degraded and say what they are, though they can read."""
    server.command("REPLICAOF", "127.0.0.1", "1")
    await eventually(lambda: "read-only replica" in guard.detail)
    server.command("REPLICAOF", "NO", "ONE")
    await is_back(guard)
    server.command("CONFIG", "SET", "maxmemory", "1")
    await eventually(lambda: "Redis is full" in guard.detail)
    server.command("CONFIG", "SET", "maxmemory", "0")
    await is_back(guard)


async def test_callers_that_give_up(server):
    """Calls cancelled at any moment leave no connection out of step for the others."""
    guard = await guarded(server.url, timeout=20)

    async def hasty(number):
        call = asyncio.ensure_future(guard.put(f"h{number % 5}", b"%d" % number, ttl=LONG))
        await asyncio.sleep(number % 20 / 5000)
        call.cancel()
        await asyncio.wait({call})

    async def patient(number):
        for turn in range(15):
            value = b"%d/%d" % (number, turn)
            await guard.put(f"p{number}", value, ttl=LONG)
            assert await guard.get(f"p{number}") == Document(value, turn + 1)

    await asyncio.gather(*map(hasty, range(150)), *map(patient, range(5)))
    assert guard.state == "ok"
    await guard.close()


@pytest.fixture
def sentinels(server, tmp_path):
    """Two Sentinels, the first of them dead, over `server`, which has a replica."""
    replica = RedisServer(tmp_path / "replica", ["--replicaof", server.host, str(server.port)])
    # One alone has the majority; two may each vote for themselves, for seconds.
    living = RedisSentinel(tmp_path / "sentinel", server, "main", down_after=0.3)
    dead = RedisServer(tmp_path / "dead")
    replica.start()
    try:
        living.start()
        yield replica, [dead, living]
    finally:
        for process in (replica, living):
            process.kill()


def told(redis, *command):
    """None while Sentinel ends all connections, as it does with its new master's."""
    with contextlib.suppress(ConnectionError):
        return redis.command(*command)


async def test_sentinel_failover(server, sentinels):
    """When the master hangs, the store goes on at the replica that Sentinel makes one, with what
    had been replicated; and not at the old one, when that wakes up."""
    replica, watching = sentinels
    url = f"redis+sentinel://{','.join(one.address for one in watching)}/main"
    guard = await guarded(url)
    await patiently(guard.put, "before", b"v", ttl=LONG)
    await eventually(lambda: told(replica, "GET", "slipstream:doc:before"))

    await eventually(lambda: watching[1].command("SENTINEL", "REPLICAS", "main"))
    server.pause()
    # Sentinel may be quicker than the next call, which then does not even fail.
    await eventually(lambda: (told(replica, "ROLE") or [b""])[0] == b"master")
    await eventually(lambda: guard.state == "ok")
    assert (await patiently(guard.get, "before")).value == b"v"
    server.resume()
    await patiently(guard.put, "after", b"w", ttl=LONG)
    await eventually(lambda: told(replica, "GET", "slipstream:doc:after"))
    await guard.close()


async def test_no_such_master(sentinels):
    """A name that the Sentinels do not know is what is said."""
    _, watching = sentinels
    store = open_store(f"redis+sentinel://{','.join(one.address for one in watching)}/other")
    with pytest.raises(StoreUnavailable, match="knows no master 'other'"):
        await store.ping()
    await store.close()


async def test_a_cluster_node_by_itself(cluster_nodes):
    """redis:// to a node of a Cluster says that it is one."""
    store = open_store(cluster_nodes[0].url, timeout=30)
    found = await asyncio.gather(*(store.get(f"k{i}") for i in range(9)), return_exceptions=True)
    assert any("Redis Cluster" in str(failure) for failure in found)
    await store.close()


async def test_a_cluster_is_found_by_any_node(cluster_nodes, url_of):
    """One living node in the URL is enough, beside others that are not there."""
    # Empty, that is.
    url_of("cluster")
    store = open_store(f"redis+cluster://127.0.0.1:1,{cluster_nodes[2].address}", timeout=30)
    items = [Append(f"l{number}", 1, 0, 1, b"x", False, LONG) for number in range(30)]
    await asyncio.gather(*(store.log_open(item.log, 1, ttl=LONG) for item in items))
    assert await store.log_append(items) == ["ok"] * 30
    sizes = [node.command("DBSIZE") for node in cluster_nodes]
    assert all(sizes), sizes
    await store.close()


async def test_a_cluster_node_that_hangs(cluster_nodes):
    """One node of three under SIGSTOP is found, though the others answer; afterwards it is back."""
    guard = await guarded(cluster_url(cluster_nodes))
    await eventually(lambda: guard.state == "ok")
    cluster_nodes[1].pause()
    try:
        await eventually(lambda: guard.state == "degraded")
        with pytest.raises(StoreUnavailable):
            await guard.get("k")
    finally:
        cluster_nodes[1].resume()
    await is_back(guard)
    await guard.close()


async def test_slots_that_move(cluster_nodes, url_of):
    """While a slot moves from node to node, and when it has moved, its documents are found."""
    store = open_store(url_of("cluster"), timeout=30)
    await store.ping()
    old, new, other = cluster_nodes
    owned = old.command("CLUSTER", "MYID").decode(), new.command("CLUSTER", "MYID").decode()
    keys = (f"k{number}" for number in range(1000))
    redis_key = next(
        f"slipstream:doc:{k}" for k in keys if key_slot(f"slipstream:doc:{k}".encode()) < 5000
    )
    key, slot = redis_key.removeprefix("slipstream:doc:"), str(key_slot(redis_key.encode()))
    assert await store.put(key, b"a", ttl=LONG) == 1
    new.command("CLUSTER", "SETSLOT", slot, "IMPORTING", owned[0])
    old.command("CLUSTER", "SETSLOT", slot, "MIGRATING", owned[1])
    assert await store.get(key) == Document(b"a", 1)
    old.command("MIGRATE", new.host, str(new.port), redis_key, "0", "1000")
    assert await store.put(key, b"b", ttl=LONG, expect=1) == 2
    for node in (new, old, other):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", owned[1])
    assert await store.put(key, b"c", ttl=LONG, expect=2) == 3
    assert new.command("GET", redis_key) is not None
    assert await store.get(key) == Document(b"c", 3)
    await store.close()
