"""Redis by itself: what is kept, what is wrong with it in words, and damage of any byte."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess

import pytest
from redis import exceptions

from slipstream.bench.faults import FaultProxy
from slipstream.bench.redis_server import RedisServer
from slipstream.core.errors import StoreUnavailable
from slipstream.store import Append, Document, open_store
from slipstream.store.redis import RedisStore
from slipstream.store.redis_trouble import explain
from slipstream.store.redis_url import parse
from tests.store.waiting import eventually, patiently

LONG = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """This module's own, to be put into any state; each test puts it right again."""
    server = RedisServer(tmp_path_factory.mktemp("own-redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def store(server):
    server.command("FLUSHALL")
    # A busy machine's delays are no failures.
    store = open_store(server.url, timeout=30)
    yield store
    await store.close()


async def fill(store):
    await store.put("session/a/1", b"some value", ttl=LONG)
    await store.log_open("gen/x/0", 1, ttl=LONG)
    await store.log_append([Append("gen/x/0", 1, 0, 2, b"ab", False, LONG)])
    await store.log_append([Append("gen/x/0", 1, 2, 1, b"c", False, LONG)])
    for member in ("m1", "m2"):
        await store.index_add("sessions/a", member, ttl=LONG)


async def test_everything_expires(server, store):
    """All keys have our prefix and a time to live, and so nothing stays for ever."""
    await fill(store)
    await store.index_add("sessions/a", "m3", ttl=1)
    await store.ping()
    keys = server.command("KEYS", "*")
    assert len(keys) == 5
    for key in keys:
        assert key.startswith(b"slipstream:")
        left = server.command("PTTL", key)
        assert 0 < left <= 60_000
        # An index stays for its longest member.
        assert left > 50_000


async def test_a_log_is_compact(server, store):
    """An entry of a log costs its data and at most 20 bytes; an index member at most 250."""
    await store.log_open("gen/x/0", 1, ttl=LONG)
    items = [Append("gen/x/0", 1, i, 1, b"x" * 40, False, LONG) for i in range(500)]
    await store.log_append(items)
    used = server.command("MEMORY", "USAGE", "slipstream:log:gen/x/0", "SAMPLES", "0")
    assert used < 500 * 60 + 1000
    for number in range(500):
        await store.index_add("sessions/a", f"session-{number:08}", ttl=LONG)
    keys = [f"slipstream:{kind}:{{sessions/a}}" for kind in ("index", "expiry")]
    used = sum(server.command("MEMORY", "USAGE", key, "SAMPLES", "0") for key in keys)
    assert used < 500 * 250


async def test_an_index_forgets_its_expired_members(server, store):
    """Expired members leave Redis when others are added, and all of them when it is listed."""
    for number in range(40):
        await store.index_add("i", f"m{number:02}", ttl=0.001)
    await store.index_add("i", "kept", ttl=LONG)

    async def some_left():
        await store.index_add("i", "kept", ttl=LONG)
        return server.command("ZCARD", "slipstream:index:{i}") == 1

    await eventually(some_left)
    for number in range(600):
        await store.index_add("i", f"m{number:03}", ttl=0.05)

    async def gone():
        return await store.index_list("i") == ["kept"]

    await eventually(gone)
    assert server.command("ZCARD", "slipstream:index:{i}") == 1
    assert server.command("ZCARD", "slipstream:expiry:{i}") == 1


async def test_many_appends_are_one_round_trip(server, store):
    """Appends to many logs go out together: no answer is waited for in between."""
    async with FaultProxy(server.address) as proxy:
        linked = open_store(f"redis://{await proxy.start()}", timeout=30)
        for number in range(50):
            await store.log_open(f"l{number}", 1, ttl=LONG)
        await linked.ping()
        before = proxy.outward.pieces
        items = [Append(f"l{number}", 1, 0, 1, b"x", False, LONG) for number in range(50)]
        assert await linked.log_append(items) == ["ok"] * 50
        assert proxy.outward.pieces - before < 50 / 2
        await linked.close()


async def test_connections_are_bounded(server, store):
    """However many calls there are at once, there are few connections; and they are kept."""
    await asyncio.gather(*(store.put(f"k{i}", b"v", ttl=LONG) for i in range(300)))
    clients = server.command("CLIENT", "LIST").splitlines()
    assert 2 <= len(clients) <= 17
    known = server.command("INFO", "stats").partition(b"total_connections_received:")[2]
    await asyncio.gather(*(store.get(f"k{i}") for i in range(300)))
    again = server.command("INFO", "stats").partition(b"total_connections_received:")[2]
    assert int(again.split()[0]) == int(known.split()[0]) + 1


async def test_forgotten_scripts(server, store):
    """A server that has forgotten the scripts, as after a restart, is given them again."""
    await fill(store)
    server.command("SCRIPT", "FLUSH")
    items = [Append(f"gen/{i}/0", 1, 0, 1, b"x", False, LONG) for i in range(3)]
    assert await store.log_append(items) == ["missing"] * 3
    assert (await store.get("session/a/1")).value == b"some value"


async def test_a_restart(tmp_path):
    """A server that was killed is named as unreachable; a new one on its port is used, empty."""
    server = RedisServer(tmp_path)
    server.start()
    store = open_store(server.url, timeout=30)
    await fill(store)
    server.kill()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await store.get("session/a/1")
    server.start()
    assert await store.get("session/a/1") is None
    assert await store.put("session/a/1", b"v", ttl=LONG, expect=0) == 1
    server.kill()
    await store.close()


async def test_idle_connections_that_were_closed(server, store):
    """A call after the server has closed the connections, as when they idle, does not fail."""
    await asyncio.gather(*(store.put(f"k{i}", b"v", ttl=LONG) for i in range(5)))
    server.command("CLIENT", "KILL", "TYPE", "normal")
    # The one that asks is left.
    await eventually(lambda: len(server.command("CLIENT", "LIST").splitlines()) == 1)
    await asyncio.sleep(0.05)
    assert await store.put("k0", b"w", ttl=LONG) == 2


@contextlib.contextmanager
def configured(server, name, value, before):
    server.command("CONFIG", "SET", name, value)
    try:
        yield
    finally:
        server.command("CONFIG", "SET", name, before)


async def test_out_of_memory(server, store):
    """A full server refuses writes, and pings, in words; reading goes on; then all is well."""
    await fill(store)
    with configured(server, "maxmemory", "1mb", "0"):
        filling = [store.put(f"k{i}", bytes(1 << 18), ttl=LONG) for i in range(8)]
        await asyncio.gather(*filling, return_exceptions=True)
        for write in (
            store.put("session/a/1", b"w", ttl=LONG),
            store.log_append([Append("gen/x/0", 1, 3, 1, b"d", False, LONG)]),
            store.log_open("gen/x/0", 2, ttl=LONG),
            store.index_add("i", "m", ttl=LONG),
            store.ping(),
        ):
            with pytest.raises(StoreUnavailable, match="Redis is full"):
                await write
        assert (await store.log_read("gen/x/0")).fence == 1
        assert await store.get("session/a/1") == Document(b"some value", 1)
        assert await store.index_list("sessions/a") == ["m1", "m2"]
    await store.ping()


async def test_a_read_only_replica(server, store):
    """A server that has become a replica refuses writes, and pings, in words."""
    await fill(store)
    server.command("REPLICAOF", "127.0.0.1", "1")
    try:
        for call in (store.put("k", b"v", ttl=LONG), store.ping()):
            with pytest.raises(StoreUnavailable, match="read-only replica"):
                await call
    finally:
        server.command("REPLICAOF", "NO", "ONE")
    await store.ping()


async def test_passwords(server, tmp_path):
    """With the password in the URL all is well; without, or with a wrong one, that is what is
    said; and no password."""
    locked = RedisServer(tmp_path, password="s3cr:t/1")
    locked.start()
    good = open_store(f"redis://:s3cr%3At%2F1@{locked.address}/2", timeout=30)
    assert await good.put("k", b"v", ttl=LONG) == 1
    await good.close()
    for login, words in (("", "wants a password"), (":wr0ng@", "refuses the user name or pass")):
        store = open_store(f"redis://{login}{locked.address}", timeout=30)
        with pytest.raises(StoreUnavailable, match=words) as caught:
            await store.ping()
        assert "wr0ng" not in caught.value.message
        await store.close()
    locked.kill()


async def test_a_paused_server(server):
    """Calls to a server that hangs end at the store's own deadline; then it goes on."""
    store = open_store(server.url, timeout=0.1)
    await patiently(store.put, "k", b"v", ttl=LONG)
    server.pause()
    try:
        calls = [store.get("k") for _ in range(40)]
        async with asyncio.timeout(20):
            found = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        server.resume()
    assert all("in time" in str(failure) or "within 0.1 s" in str(failure) for failure in found)
    assert (await patiently(store.get, "k")).value == b"v"
    await store.close()


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "still loading"),
        (exceptions.ClusterDownError("Hash slot not served"), "Cluster is down"),
        (exceptions.MasterDownError("Link with MASTER is down"), "lost its master"),
        (exceptions.ResponseError("MISCONF Redis is configured to save"), "cannot save"),
        (exceptions.ResponseError("ERR Error running script: @user_script: 3: -OOM x"), "is full"),
        (exceptions.ResponseError("ERR what is this"), "Redis refuses: ERR what is this"),
        (exceptions.NoPermissionError("this user has no permissions"), "does not permit"),
        (exceptions.TimeoutError("reading"), "in time"),
        (ConnectionRefusedError(), "cannot be reached: ConnectionRefusedError"),
    ],
)
def test_words(failure, words):
    """Every trouble is told apart for whoever has to mend it."""
    assert words in explain(failure)


async def test_kept_damage(server, store):
    """What was changed where Redis keeps it is never given out as data."""
    await fill(store)
    server.command("SETRANGE", "slipstream:doc:session/a/1", "40", "X")
    with pytest.raises(StoreUnavailable, match="keeps is damaged: the document"):
        await store.get("session/a/1")
    key = "slipstream:log:gen/x/0"
    head, entry = server.command("LINDEX", key, "0"), server.command("LINDEX", key, "1")
    server.command("LSET", key, "1", entry[:-1] + b"X")
    with pytest.raises(StoreUnavailable, match="damaged: an entry"):
        await store.log_read("gen/x/0")
    server.command("LSET", key, "1", entry)
    server.command("LSET", key, "0", head[:30] + b"7" + head[31:])
    with pytest.raises(StoreUnavailable, match="damaged: the head"):
        await store.log_read("gen/x/0")
    # One document, whole, in another one's place.
    await store.put("session/a/2", b"other", ttl=LONG)
    other = server.command("GET", "slipstream:doc:session/a/2")
    server.command("SET", "slipstream:doc:session/a/1", other)
    with pytest.raises(StoreUnavailable, match="damaged"):
        await store.get("session/a/1")


def clients(server):
    """Who is connected, but for who asks."""
    lines = server.command("CLIENT", "LIST").splitlines()
    return {line.split()[0] for line in lines if b"cmd=client" not in line}


async def attempt(call):
    try:
        return await call
    except StoreUnavailable as failure:
        return failure


@pytest.mark.parametrize("direction", ["outward", "homeward"])
async def test_damage_on_the_way(server, store, direction):
    """Whatever bit of a connection is flipped, an answer is right or there is none; what was not
    asked for is not written."""
    await fill(store)
    expected = {
        "document": (Document(b"some value", 1), lambda one: one.get("session/a/1")),
        "nothing": (None, lambda one: one.get("session/a/9")),
        "members": (["m1", "m2"], lambda one: one.index_list("sessions/a")),
        "entries": (((0, b"ab"), (2, b"c")), lambda one: one.log_read("gen/x/0")),
    }
    places = range(0, 420, 7) if direction == "outward" else range(0, 160, 3)
    right = unsure = 0
    others = clients(server)
    async with FaultProxy(server.address) as proxy:
        url = parse(f"redis://{await proxy.start()}")
        for place in places:
            one = RedisStore(url, timeout=0.1)
            await attempt(one.ping())
            name = list(expected)[place % 4]
            answer, call = expected[name]
            proxy.corrupt_once(place, direction)
            found = await attempt(call(one))
            found = getattr(found, "entries", found)
            proxy.heal()
            assert found == answer or isinstance(found, StoreUnavailable), (place, name)
            right += found == answer
            before = await store.get("written")
            proxy.corrupt_once(place, direction)
            version = await attempt(one.put("written", b"%d" % place, ttl=LONG))
            proxy.heal()
            await one.close()
            # What was on its way may yet be written, until Redis has seen the end of that.
            await eventually(lambda: clients(server) == others)
            now = await store.get("written")
            unsure += not isinstance(version, int)
            if isinstance(version, int):
                assert now == Document(b"%d" % place, version)
            else:
                assert now in {before, Document(b"%d" % place, getattr(before, "version", 0) + 1)}
        assert proxy.outward.flipped + proxy.homeward.flipped > 50
    assert right > 20
    assert unsure > (0 if direction == "outward" else 20)
    names = {key for key in server.command("KEYS", "*") if b"log" not in key}
    assert names == {
        b"slipstream:doc:session/a/1",
        b"slipstream:doc:written",
        b"slipstream:index:{sessions/a}",
        b"slipstream:expiry:{sessions/a}",
        b"slipstream:ping",
    }


@pytest.fixture
def certificate(tmp_path):
    """For localhost, signed by itself; its key is beside it."""
    path = tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", path),
            *("-keyout", path.with_suffix(".key"), "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return path


async def test_tls(server, certificate):
    """rediss:// encrypts and checks who answers, by the authority that the URL names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    async with FaultProxy(server.address) as proxy:
        port = (await proxy.start(tls=context)).rpartition(":")[2]
        for url, works in (
            (f"rediss://localhost:{port}?ssl_ca_certs={certificate}", True),
            (f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}", False),
            (f"rediss://localhost:{port}", False),
            (f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none", True),
            (f"redis://127.0.0.1:{port}", False),
        ):
            store = RedisStore(parse(url), timeout=30.0 if works else 0.3)
            if works:
                await store.ping()
            else:
                with pytest.raises(StoreUnavailable):
                    await store.ping()
            await store.close()
