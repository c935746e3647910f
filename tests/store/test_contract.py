"""What every store does, whatever keeps it: one suite for all kinds."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from slipstream.store import Append, Document, Fenced, IndexFull, VersionConflict, open_store
from tests.store.conftest import PATIENT
from tests.store.waiting import eventually
from tests.store.writer import writer

KEY = "session/alice {x} 100%/s1"
LOG = "gen/chatcmpl-1/0"
LONG = 60.0
# So long something lives that the test waits out.
SHORT = 0.1


def entry(start, count, data=b"x", *, fence=1, log=LOG, ended=False, ttl=LONG):
    return Append(log, fence, start, count, data, ended, ttl)


async def test_document_versions(store):
    """A document's versions count from 1, over writes with and without an expectation."""
    assert await store.get(KEY) is None
    assert await store.put(KEY, b"a", ttl=LONG) == 1
    assert await store.put(KEY, b"b", ttl=LONG, expect=1) == 2
    assert await store.put(KEY, b"c", ttl=LONG) == 3
    assert await store.get(KEY) == Document(b"c", 3)
    assert await store.put("other", b"", ttl=LONG, expect=0) == 1
    assert await store.get("other") == Document(b"", 1)


async def test_conflicts_change_nothing(store):
    """A write or delete with the wrong expectation is refused, says what is there, and is void."""
    for expect in (1, 7):
        with pytest.raises(VersionConflict) as caught:
            await store.put(KEY, b"a", ttl=LONG, expect=expect)
        assert caught.value.current == 0
    await store.put(KEY, b"a", ttl=LONG)
    for write in (store.put(KEY, b"b", ttl=LONG, expect=0), store.delete(KEY, expect=2)):
        with pytest.raises(VersionConflict) as caught:
            await write
        assert caught.value.current == 1
    assert await store.get(KEY) == Document(b"a", 1)


async def test_delete(store):
    """A delete says whether there was something, and a document that is made anew is version 1."""
    assert not await store.delete(KEY)
    assert not await store.delete(KEY, expect=0)
    await store.put(KEY, b"a", ttl=LONG)
    await store.put(KEY, b"b", ttl=LONG)
    assert await store.delete(KEY, expect=2)
    assert await store.get(KEY) is None
    assert await store.put(KEY, b"c", ttl=LONG, expect=0) == 1


async def test_values_are_bytes(store):
    """Any bytes come back as they were: zeros, all values, UTF-8 or not, and a megabyte of them."""
    for value in (b"\0", bytes(range(256)), "naïve 日本".encode(), bytes(range(256)) * 4096):
        await store.put(KEY, value, ttl=LONG)
        found = await store.get(KEY)
        assert found is not None
        assert found.value == value


async def test_documents_expire(store):
    """A document is gone after its time, and is as if it had never been; a write renews it."""
    await store.put(KEY, b"a", ttl=SHORT)
    await store.put("renewed", b"a", ttl=SHORT)
    await store.put("renewed", b"b", ttl=LONG)

    async def gone():
        return await store.get(KEY) is None

    await eventually(gone)
    assert await store.put(KEY, b"b", ttl=LONG, expect=0) == 1
    assert not await store.delete("expired")
    assert (await store.get("renewed")).value == b"b"


async def test_log_grows_in_order(store):
    """Entries come back as they were appended, those without positions and the last one, too."""
    view = await store.log_open(LOG, 1, ttl=LONG)
    assert (view.fence, view.length, view.ended, view.entries) == (1, 0, False, ())
    items = [entry(0, 3, b"abc"), entry(3, 0, b"note"), entry(3, 2, b"de")]
    assert await store.log_append(items) == ["ok"] * 3
    assert await store.log_append([entry(5, 0, b"end", ended=True)]) == ["ok"]
    view = await store.log_read(LOG)
    assert view.entries == ((0, b"abc"), (3, b"note"), (3, b"de"), (5, b"end"))
    assert (view.fence, view.length, view.ended) == (1, 5, True)
    assert 0 <= view.age < 30


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0, [b"abc", b"note", b"de", b"f", b"end"]),
        (2, [b"abc", b"note", b"de", b"f", b"end"]),
        (3, [b"note", b"de", b"f", b"end"]),
        (4, [b"de", b"f", b"end"]),
        (5, [b"f", b"end"]),
        (6, [b"end"]),
        (7, []),
    ],
)
async def test_log_read_from_a_position(store, start, expected):
    """A read gives what covers positions from its start on, and what stands there without any."""
    await store.log_open(LOG, 1, ttl=LONG)
    parts = [(0, 3, b"abc"), (3, 0, b"note"), (3, 2, b"de"), (5, 1, b"f")]
    await store.log_append([entry(*part) for part in parts])
    await store.log_append([entry(6, 0, b"end", ended=True)])
    view = await store.log_read(LOG, start)
    assert [data for _, data in view.entries] == expected
    assert view.length == 6


async def test_an_entry_at_the_end_reaches_to_the_end(store):
    """The last entry covers what the log has of positions, though nothing comes after it."""
    await store.log_open(LOG, 1, ttl=LONG)
    await store.log_append([entry(0, 3, b"abc")])
    assert (await store.log_read(LOG, 2)).entries == ((0, b"abc"),)
    assert (await store.log_read(LOG, 3)).entries == ()


async def test_log_refusals(store):
    """Appends that do not fit are told why, each by itself, and leave the log as it was."""
    await store.log_open(LOG, 5, ttl=LONG)
    await store.log_open("gen/b/0", 5, ttl=LONG)
    good = entry(0, 2, b"ab", fence=5)
    items = [
        good,
        good,
        entry(3, 1, fence=5),
        entry(2, 1, fence=4),
        entry(2, 1, fence=6),
        entry(0, 1, log="gen/none/0"),
        entry(0, 1, b"z", fence=5, log="gen/b/0", ended=True),
        entry(1, 1, fence=5, log="gen/b/0"),
    ]
    expected = ["ok", "gap", "gap", "fenced", "fenced", "missing", "ok", "gap"]
    assert await store.log_append(items) == expected
    assert await store.log_append([]) == []
    assert (await store.log_read(LOG)).entries == ((0, b"ab"),)
    assert await store.log_read("gen/none/0") is None


async def test_taking_a_log_over(store):
    """A higher fence takes the log over with all there is; the one before is fenced off."""
    await store.log_open(LOG, 1, ttl=LONG)
    await store.log_append([entry(0, 1, b"a")])
    view = await store.log_open(LOG, 2**40, ttl=LONG)
    assert (view.fence, view.length, view.entries) == (2**40, 1, ((0, b"a"),))
    for fence in (1, 2**40):
        with pytest.raises(Fenced) as caught:
            await store.log_open(LOG, fence, ttl=LONG)
        assert caught.value.fence == 2**40
    items = [entry(1, 1, b"old"), entry(1, 1, b"new", fence=2**40)]
    assert await store.log_append(items) == ["fenced", "ok"]
    assert (await store.log_read(LOG)).entries == ((0, b"a"), (1, b"new"))


async def test_heartbeats(store):
    """A heartbeat makes the log young and keeps it, and adds nothing to it."""
    await store.log_open(LOG, 1, ttl=LONG)
    await store.log_append([entry(0, 1, b"a")])

    async def old():
        return (await store.log_read(LOG)).age > 0.2

    await eventually(old)
    began = time.time()
    assert await store.log_append([entry(1, 0, b"")]) == ["ok"]
    view = await store.log_read(LOG)
    # However long the two calls took: without the heartbeat it would be older by 0.2 s.
    assert view.age < time.time() - began + 0.1
    assert (view.length, view.entries) == (1, ((0, b"a"),))


async def test_logs_expire_and_are_deleted(store):
    """A log is gone after its last ttl, or when deleted; what begins under its name is empty."""
    await store.log_open(LOG, 3, ttl=LONG)
    await store.log_append([entry(0, 1, b"a", fence=3, ttl=SHORT)])
    await store.log_open("gen/b/0", 3, ttl=LONG)
    await store.log_append([entry(0, 1, b"b", fence=3, log="gen/b/0")])
    await store.log_delete("gen/b/0")
    await store.log_delete("gen/b/0")
    assert await store.log_read("gen/b/0") is None

    async def gone():
        return await store.log_read(LOG) is None

    await eventually(gone)
    assert await store.log_append([entry(1, 1, fence=3)]) == ["missing"]
    for name in (LOG, "gen/b/0"):
        view = await store.log_open(name, 1, ttl=LONG)
        assert (view.fence, view.length, view.entries) == (1, 0, ())


async def test_a_long_log(store):
    """A log of many entries is read whole, and from any place on."""
    await store.log_open(LOG, 1, ttl=LONG)
    datas = [bytes([i % 256]) * (i % 90 + 1) for i in range(300)]
    items = [entry(2 * i, 2, data) for i, data in enumerate(datas)]
    for first in range(0, 300, 100):
        assert set(await store.log_append(items[first : first + 100])) == {"ok"}
    assert [data for _, data in (await store.log_read(LOG)).entries] == datas
    for start in (1, 2, 311, 400, 599):
        view = await store.log_read(LOG, start)
        assert [data for _, data in view.entries] == datas[start // 2 :]


async def test_index_pages(store):
    """Members come in the order of their text, page by page, each once."""
    members = [f"s{number}" for number in range(25)] + ["S", "s", "~", "a b", "é"]
    for member in (*members, *members[:5]):
        await store.index_add("sessions/{a}", member, ttl=LONG)
    await store.index_add("sessions/b", "elsewhere", ttl=LONG)
    pages, after = [], ""
    while page := await store.index_list("sessions/{a}", after, 7):
        pages.append(page)
        after = page[-1]
    assert [member for page in pages for member in page] == sorted(members)
    assert [len(page) for page in pages] == [7, 7, 7, 7, 2]
    await store.index_remove("sessions/{a}", "s7")
    await store.index_remove("sessions/{a}", "not there")
    assert await store.index_list("sessions/{a}", "s6", 2) == ["s8", "s9"]
    assert await store.index_list("sessions/none") == []


async def test_index_members_expire(store):
    """Members leave by themselves, many and few; one that is added again stays."""
    for number in range(40):
        await store.index_add("i", f"m{number:03}", ttl=SHORT if number % 8 else LONG)
    await store.index_add("i", "m001", ttl=LONG)
    expected = sorted([*(f"m{number:03}" for number in range(0, 40, 8)), "m001"])

    async def settled():
        return await store.index_list("i") == expected

    await eventually(settled)
    assert await store.index_list("i", "m001", 2) == ["m008", "m016"]


async def test_a_full_index(store):
    """With as many members as it may have, an index takes those that it has and no other one, until
    one leaves; who asks for no bound meets none."""
    for number in range(3):
        await store.index_add("sessions/{a}", f"m{number}", ttl=LONG, most=3)
    await store.index_add("sessions/b", "elsewhere", ttl=LONG, most=1)
    with pytest.raises(IndexFull) as caught:
        await store.index_add("sessions/{a}", "m3", ttl=LONG, most=3)
    assert caught.value.members == 3
    await store.index_add("sessions/{a}", "m1", ttl=LONG, most=3)
    await store.index_add("sessions/{a}", "m1", ttl=LONG, most=1)
    assert await store.index_list("sessions/{a}") == ["m0", "m1", "m2"]
    await store.index_remove("sessions/{a}", "m0")
    await store.index_remove("sessions/{a}", "m0")
    await store.index_add("sessions/{a}", "m3", ttl=LONG, most=3)
    await store.index_add("sessions/{a}", "m4", ttl=LONG)
    with pytest.raises(IndexFull) as caught:
        await store.index_add("sessions/{a}", "m5", ttl=LONG, most=3)
    assert caught.value.members == 4
    assert await store.index_list("sessions/{a}") == ["m1", "m2", "m3", "m4"]


async def test_expired_members_need_no_room(store):
    """Room is for members that live, however many have expired; to add one that lives, within a
    bound, does not end it sooner."""
    for number in range(20):
        await store.index_add("i", f"m{number:02}", ttl=SHORT)
    await store.index_add("i", "kept", ttl=LONG, most=21)
    await store.index_add("i", "kept", ttl=SHORT, most=21)

    async def taken():
        with contextlib.suppress(IndexFull):
            await store.index_add("i", "new", ttl=LONG, most=2)
            return True

    await eventually(taken)
    assert await store.index_list("i") == ["kept", "new"]
    for number in (3, 4):
        with pytest.raises(IndexFull) as caught:
            await store.index_add("i", f"m{number:02}", ttl=LONG, most=2)
        assert caught.value.members == 2
    await store.index_add("i", "m03", ttl=LONG, most=3)
    assert await store.index_list("i") == ["kept", "m03", "new"]


async def test_no_two_take_the_last_place(opened):
    """Of many that enter an index at once, through several stores, exactly as many as may are let
    in; each that leaves lets one more in."""
    stores = [opened() for _ in range(3)]

    async def enter(number):
        with contextlib.suppress(IndexFull):
            await stores[number % 3].index_add("i", f"m{number:02}", ttl=LONG, most=10)
            return True
        return False

    entered = await asyncio.gather(*map(enter, range(30)))
    inside = [f"m{number:02}" for number in range(30) if entered[number]]
    assert await stores[0].index_list("i") == inside
    assert len(inside) == 10
    await asyncio.gather(*(stores[1].index_remove("i", member) for member in inside[:4]))
    assert sum(await asyncio.gather(*map(enter, range(30, 60)))) == 4
    await asyncio.gather(*(store.close() for store in set(stores)))


async def test_no_update_is_lost(opened):
    """Writers of several stores that count by compare-and-set lose none of each other's counts."""
    stores = [opened() for _ in range(3)]

    async def count(store, times):
        while times:
            found = await store.get(KEY)
            value, version = (b"0", 0) if found is None else (found.value, found.version)
            try:
                await store.put(KEY, b"%d" % (int(value) + 1), ttl=LONG, expect=version)
                times -= 1
            except VersionConflict:
                pass

    await asyncio.gather(*(count(store, 5) for store in stores for _ in range(4)))
    assert await stores[0].get(KEY) == Document(b"60", 60)
    await asyncio.gather(*(store.close() for store in set(stores)))


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_processes_count_together(url_of, kind):
    """Processes that open one store at once, and count by compare-and-set, lose no count."""
    url = url_of(kind)
    processes = [writer(url, "count", 20) for _ in range(2)]
    for process in processes:
        await asyncio.to_thread(process.communicate, timeout=100)
    assert [process.returncode for process in processes] == [0, 0]
    store = open_store(url, timeout=PATIENT)
    assert await store.get("n") == Document(b"40", 40)
    await store.close()


async def test_two_writers_of_a_log(opened):
    """Of two that append at once, the higher fence goes on where the lower one was cut off."""
    one, two = opened(), opened()
    await one.log_open(LOG, 1, ttl=LONG)
    taken = asyncio.Event()

    async def lower():
        position = 0
        while (await one.log_append([entry(position, 1, b"1")])) == ["ok"]:
            position += 1
            if position == 10:
                taken.set()
            # Not every store has the event loop do something else.
            await asyncio.sleep(0)
        return position

    async def higher():
        await taken.wait()
        view = await two.log_open(LOG, 2, ttl=LONG)
        items = [entry(view.length + i, 1, b"2", fence=2) for i in range(20)]
        assert await two.log_append(items) == ["ok"] * 20
        return view.length

    written, begun = await asyncio.gather(lower(), higher())
    assert written == begun
    view = await two.log_read(LOG)
    assert [data for _, data in view.entries] == [b"1"] * written + [b"2"] * 20
    await asyncio.gather(*(store.close() for store in {one, two}))


async def test_ping(store):
    """A store that works answers a ping, and nobody finds what it wrote."""
    await store.ping()
    await store.ping()
    assert await store.get("ping") is None
    assert await store.get("") is None


async def test_cancelled_calls_harm_nobody(store):
    """Calls given up at any moment leave the store in order for those who go on."""
    await store.put(KEY, b"value", ttl=LONG)

    async def hasty(number):
        call = asyncio.ensure_future(store.put(f"k{number % 3}", b"%d" % number, ttl=LONG))
        for _ in range(number % 6):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})

    async def patient():
        for _ in range(20):
            assert await store.get(KEY) == Document(b"value", 1)

    await asyncio.gather(patient(), patient(), *(hasty(number) for number in range(60)))
    assert await store.get(KEY) == Document(b"value", 1)
