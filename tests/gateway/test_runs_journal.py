"""The journal: what it writes, what it holds, and what becomes of it in a store's bad times."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from gateway.runs import journal as journals
from gateway.runs.journal import Bounds, Journal
from gateway.runs.log import Message, Writer, read
from slipstream.wire.proto import types_pb2
from tests.gateway.kept import TroubledStore

LENGTH = types_pb2.FINISH_REASON_LENGTH


def message(*ids, finish=0):
    return Message(tokens=[types_pb2.Token(id=one) for one in ids], finish_reason=finish)


@contextlib.asynccontextmanager
async def journal_over(store, bounds=None):
    journal = Journal(store, bounds)
    journal.start()
    try:
        yield journal
    finally:
        await journal.close(1.0)


async def opened(store, journal, name="gen/x/0", fence=1):
    lost = []
    writer = Writer(name, 60.0, lost.append)
    view = await store.log_open(name, fence, ttl=60.0)
    writer.open(fence, view.length)
    journal.add(writer)
    return writer, lost


async def tokens_of(store, name="gen/x/0"):
    known = read(await store.log_read(name))
    assert known.whole
    return [token.id for one in known.messages for token in one.tokens]


@pytest.fixture
def store():
    return TroubledStore()


async def test_batches_of_many_logs(store, eventually):
    """What comes within a tenth of a second is one round trip, however many logs and messages."""
    async with journal_over(store) as journal:
        writers = [(await opened(store, journal, f"gen/x/{place}"))[0] for place in range(20)]
        for place, writer in enumerate(writers):
            for one in range(30):
                journal.note(writer, message(place, one))
        await eventually(lambda: not journal.pending_bytes)
        assert store.calls["log_append"] <= 2
        for place in range(20):
            expected = [one for pair in ((place, n) for n in range(30)) for one in pair]
            assert await tokens_of(store, f"gen/x/{place}") == expected
            assert len((await store.log_read(f"gen/x/{place}")).entries) <= 2


async def test_an_end_is_written_at_once(store, eventually, monkeypatch):
    """The last message does not wait for the batch; a stop string's end becomes one of its own."""
    monkeypatch.setattr(journals, "_FLUSH_SECONDS", 60.0)
    async with journal_over(store) as journal:
        writer, _ = await opened(store, journal)
        journal.note(writer, message(1, 2))
        journal.note(writer, message(3, finish=LENGTH))
        await asyncio.wait_for(writer.settled.wait(), 10)
        assert writer.stored
        known = read(await store.log_read("gen/x/0"))
        assert known.ended
        assert known.messages[-1].finish_reason == LENGTH
        stopped, _ = await opened(store, journal, "gen/y/0")
        journal.note(stopped, message(1, 2))
        journal.end(stopped)
        await asyncio.wait_for(stopped.settled.wait(), 10)
        known = read(await store.log_read("gen/y/0"))
        assert (known.ended, known.length) == (True, 2)


async def test_statistics_are_the_last_message_s(store):
    """Messages that tell what speculation did so far are joined without adding that up."""
    async with journal_over(store) as journal:
        writer, _ = await opened(store, journal)
        for steps in (1, 2, 3):
            one = message(steps, finish=LENGTH if steps == 3 else 0)
            one.stats.num_steps = steps
            one.stats.acceptance_histogram.extend([0, steps])
            one.cached_prompt_tokens = 7
            journal.note(writer, one)
        await asyncio.wait_for(writer.settled.wait(), 10)
    (entry,) = read(await store.log_read("gen/x/0")).messages
    assert (entry.stats.num_steps, list(entry.stats.acceptance_histogram)) == (3, [0, 3])
    assert entry.cached_prompt_tokens == 7


async def test_signs_of_life(store, eventually, monkeypatch):
    """A log with nothing new is beaten; one that was let go says so, with the writer's fence."""
    monkeypatch.setattr(journals, "BEAT_SECONDS", 0.05)
    now = 0.0
    store._clock = lambda: now
    async with journal_over(store) as journal:
        writer, _ = await opened(store, journal)
        now = 5.0
        before = store.calls.get("log_append", 0)
        await eventually(lambda: store.calls.get("log_append", 0) > before + 1)
        assert (await store.log_read("gen/x/0")).age == 0.0
        assert not read(await store.log_read("gen/x/0")).released
        journal.release(writer)
        await asyncio.wait_for(writer.settled.wait(), 10)
        assert read(await store.log_read("gen/x/0")).released
        # Whoever takes it over runs it, whatever the last one said.
        again = await store.log_open("gen/x/0", 2, ttl=60.0)
        assert not read(again).released
        assert read(again).whole


@pytest.mark.parametrize("trouble", ["down", "hang", "lost", "slow"])
async def test_nothing_is_lost_or_doubled_in_a_store_s_bad_times(
    store, eventually, monkeypatch, trouble
):
    """Entries that failed come again, and those whose answers were lost not twice."""
    monkeypatch.setattr(journals, "_RETRY_SECONDS", 0.02)
    async with journal_over(store) as journal:
        writer, lost = await opened(store, journal)
        for place in range(6):
            store.trouble = {"log_append": trouble} if place % 2 else {}
            journal.note(writer, message(place, place))
            calls = store.calls.get("log_append", 0)
            await eventually(lambda calls=calls: store.calls.get("log_append", 0) > calls)
        store.trouble = {}
        journal.note(writer, message(9, finish=LENGTH))
        await asyncio.wait_for(writer.settled.wait(), 10)
        assert writer.stored
        assert lost == []
    assert await tokens_of(store) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 9]


async def test_the_end_whose_answer_was_lost(store):
    """A log that has its last entry already takes none, and that is no failure."""
    async with journal_over(store) as journal:
        writer, lost = await opened(store, journal)
        store.trouble = {"log_append": "lost"}
        journal.note(writer, message(1, finish=LENGTH))
        await asyncio.sleep(0.15)
        store.trouble = {}
        await asyncio.wait_for(writer.settled.wait(), 10)
        assert (writer.stored, lost) == (True, [])


async def test_what_waits_is_bounded(store):
    """With a store that hangs, a log and all of them together hold no more than they may; what is
    beyond is dropped, its writer told, and noting never waits."""
    store.trouble = {"log_append": "hang"}
    bounds = Bounds(log_bytes=2000, log_messages=50, all_bytes=5000)
    async with journal_over(store, bounds) as journal:
        logs = [await opened(store, journal, f"gen/x/{place}") for place in range(10)]
        began = time.process_time()
        for _ in range(200):
            for writer, _ in logs:
                journal.note(writer, message(*range(200, 220)))
                assert journal.pending_bytes <= 5000
                assert writer.size <= 2000
            await asyncio.sleep(0)
        assert time.process_time() - began < 10
        assert journal.dropped["full"] == 10
        assert journal.pending_bytes == 0
        assert all(lost == ["full"] for _, lost in logs)
        assert all(writer.closed for writer, _ in logs)
        few, lost = await opened(store, journal, "gen/y/0")
        for place in range(51):
            journal.note(few, message(place))
        assert lost == ["full"]


async def test_whoever_took_over_is_left_alone(store):
    """A writer that was fenced off, or whose log is gone, writes nothing more and hears why."""
    async with journal_over(store) as journal:
        fenced, lost_one = await opened(store, journal)
        gone, lost_two = await opened(store, journal, "gen/y/0")
        view = await store.log_open("gen/x/0", 2, ttl=60.0)
        assert view.length == 0
        await store.log_delete("gen/y/0")
        for writer in (fenced, gone):
            journal.note(writer, message(1, 2, finish=LENGTH))
            await asyncio.wait_for(writer.settled.wait(), 10)
            assert not writer.stored
        assert (lost_one, lost_two) == (["fenced"], ["missing"])
        assert journal.pending_bytes == 0
    assert (await store.log_read("gen/x/0")).length == 0


async def test_a_log_that_has_lost_its_end(store):
    """A store that came back with an older log takes no entry behind the hole: it is dropped."""
    async with journal_over(store) as journal:
        writer, lost = await opened(store, journal)
        journal.note(writer, message(1, 2))
        await journal._round()
        store._logs["gen/x/0"].entries.clear()
        store._logs["gen/x/0"].length = 0
        journal.note(writer, message(3))
        await asyncio.wait_for(writer.settled.wait(), 10)
        assert lost == ["gap"]
        assert journal.dropped["gap"] == 1
    assert await tokens_of(store) == []


async def test_closing_writes_what_waits_and_lets_go(store):
    """Within its grace; a store that hangs does not hold it up for longer."""
    journal = Journal(store)
    journal.start()
    writer, _ = await opened(store, journal)
    journal.note(writer, message(1, 2))
    await journal.close(5.0)
    known = read(await store.log_read("gen/x/0"))
    assert (known.length, known.released, known.ended) == (2, True, False)
    journal = Journal(store)
    journal.start()
    writer, _ = await opened(store, journal, "gen/y/0")
    journal.note(writer, message(1, 2))
    store.all_calls("hang")
    async with asyncio.timeout(10):
        await journal.close(0.05)


def test_damaged_logs(store):
    """What does not parse, or does not follow on, ends what is known; overlaps are told once."""
    from slipstream.store import LogView

    one, two = message(1, 2).SerializeToString(), message(3, 4, finish=LENGTH).SerializeToString()
    known = read(LogView(1, 4, 0.0, True, ((0, one), (2, b"\xff\xff"))))
    assert (known.length, known.ended, known.whole) == (2, False, False)
    known = read(LogView(1, 6, 0.0, True, ((0, one), (4, two))))
    assert (known.length, known.ended, known.whole) == (2, False, False)
    known = read(LogView(1, 4, 0.0, True, ((0, one), (2, two))), start=1)
    assert [token.id for m in known.messages for token in m.tokens] == [2, 3, 4]
    assert known.ended
