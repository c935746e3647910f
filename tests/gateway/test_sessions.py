from __future__ import annotations

import asyncio
import contextlib

import pytest

from gateway.course import Course
from gateway.sessions import Conversations
from gateway.sessions.claim import Opened
from gateway.sessions.turn import Turn
from slipstream.core.errors import (
    ContextTooLong,
    InvalidParameter,
    InvalidRequest,
    SessionConflict,
    SessionNotFound,
    StoreUnavailable,
)
from slipstream.store import MemoryStore
from slipstream.wire.proto import store_pb2
from tests.gateway.conversing import (
    Clock,
    FaultyStore,
    TextAsked,
    answering,
    request_of,
    say,
    sessions_at,
    text_turn,
)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sessions(clock):
    return sessions_at(clock)


async def texts(sessions, session_id, owner="me") -> list:
    return [(turn.text, turn.output_text) for turn in (await sessions.get(owner, session_id)).turns]


async def test_each_turn_continues_the_ones_before(sessions):
    """Turn 0 makes the session; each next one finds all before it, and says how many there are."""
    for count in range(3):
        whole, state = await say(sessions, "s", count, f"q{count}", f"a{count}")
        assert whole == [word for i in range(count) for word in (f"q{i}", f"a{i}")] + [f"q{count}"]
        assert (state.id, state.turns, state.stored, state.detail) == ("s", count + 1, True, "")
    found = await sessions.get("me", "s")
    assert (found.kind, found.num_turns) == ("text", 3)
    assert [turn.request_id for turn in found.turns] == ["r"] * 3
    assert found.turns[0].usage.completion_tokens == 2
    assert found.turns[0].seed == 5
    _, state = await say(sessions, "s", None, "q", "a")
    assert state.turns == 4


async def test_what_is_not_there_or_has_another_length(sessions):
    """A session that must exist is not made, and a wrong number of turns says the right one."""
    with pytest.raises(SessionNotFound, match="session_turn 0"):
        await sessions.open("me", "s", None)
    with pytest.raises(SessionNotFound):
        await sessions.open("me", "s", 1)
    await say(sessions, "s", 0, "q", "a")
    for wrong in (0, 2):
        with pytest.raises(SessionConflict, match=f"has 1 turns, not {wrong}") as raised:
            await sessions.open("me", "s", wrong)
        assert raised.value.retry_after is None
    with pytest.raises(InvalidParameter, match="1 to 128"):
        await sessions.open("me", "a/b", 0)


async def test_a_second_writer_is_refused_at_once(sessions):
    """While a turn runs, another is told who writes, and what to do; afterwards it goes on."""
    await sessions.create("me", "s")
    async with sessions.turn("me", "s", 0, "first") as turn:
        assert turn.before == 0
        with pytest.raises(SessionConflict, match="request first;.*fork") as raised:
            await sessions.open("me", "s", 0)
        assert 9 < raised.value.retry_after <= 10
        await turn.commit(text_turn("q", "a"), "text")
        # Also before the block is left: the client may have its answer by now.
        await say(sessions, "s", 1, "q", "a")
    assert await texts(sessions, "s") == [("q", "a")] * 2


async def test_of_two_that_began_together_one_wins(sessions):
    """Two requests that both read the session free: the second to claim it is refused."""
    await say(sessions, "s", 0, "q", "a")
    opened = [await sessions.open("me", "s", 1) for _ in range(2)]
    async with Turn(sessions.desk, opened[0], "first") as turn:
        with pytest.raises(SessionConflict, match="request first"):
            await Turn(sessions.desk, opened[1], "second").__aenter__()
        await turn.commit(text_turn("q1", "a1"), "text")
    with pytest.raises(SessionConflict, match="in the meantime"):
        await Turn(sessions.desk, opened[1], "second").__aenter__()
    assert await texts(sessions, "s") == [("q", "a"), ("q1", "a1")]


async def test_two_new_sessions_of_one_id(sessions):
    """Of two first turns at once, one makes the session and the other is refused."""
    opened = [await sessions.open("me", "s", 0) for _ in range(2)]
    async with Turn(sessions.desk, opened[0], "first") as turn:
        with pytest.raises(SessionConflict):
            await Turn(sessions.desk, opened[1], "second").__aenter__()
        await turn.commit(text_turn("q", "a"), "text")
    assert await texts(sessions, "s") == [("q", "a")]


@pytest.mark.parametrize("end", ["error", "cancel", "close"])
async def test_a_turn_that_does_not_end_leaves_no_trace(sessions, end):
    """A failed, cancelled or closed turn is not stored and frees the session; one it made goes."""
    await say(sessions, "old", 0, "q", "a")
    for session_id, count in (("old", 1), ("new", 0)):
        asked = TextAsked(session_id, count, "never")
        conversation = await Conversations(sessions).of(asked, ["never"], "me")
        pieces = answering("xy", asyncio.Event())
        if end == "error":
            pieces = failing()
        run = conversation.recorded(pieces, request_of("r2"), Course())
        await anext(run)
        with pytest.raises(SessionConflict):
            await sessions.open("me", session_id, None)
        if end == "error":
            with pytest.raises(InvalidRequest):
                await anext(run)
        elif end == "close":
            await run.aclose()
        else:
            task = asyncio.create_task(anext(run))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert await texts(sessions, "old") == [("q", "a")]
    with pytest.raises(SessionNotFound):
        await sessions.get("me", "new")
    assert [each.id for each in (await sessions.list("me"))[0]] == ["old"]
    await say(sessions, "old", 1, "q", "a")
    await say(sessions, "new", 0, "q", "a")


async def failing():
    async for piece in answering("xy"):
        yield piece
        raise InvalidRequest("no")


async def test_a_dead_writers_claim_lapses(sessions, clock):
    """Without a sign of life for ten seconds the session is free; the late one is refused."""
    await say(sessions, "s", 0, "q", "a")
    async with sessions.turn("me", "s", 1, "stalled") as stalled:
        clock.now += 9.9
        with pytest.raises(SessionConflict):
            await sessions.open("me", "s", 1)
        clock.now += 0.2
        async with sessions.turn("me", "s", 1, "second") as second:
            with pytest.raises(SessionConflict, match="not part of it"):
                await stalled.commit(text_turn("late", "late"), "text")
            await second.commit(text_turn("q1", "a1"), "text")
        with pytest.raises(SessionConflict):
            await stalled.commit(text_turn("late", "late"), "text")
    assert await texts(sessions, "s") == [("q", "a"), ("q1", "a1")]


async def test_a_stalled_writer_whose_place_nobody_took(sessions, clock):
    """A claim that lapsed costs nothing where the session is still as it was."""
    await say(sessions, "s", 0, "q", "a")
    async with sessions.turn("me", "s", 1, "stalled") as stalled:
        clock.now += 60
        state = await stalled.commit(text_turn("q1", "a1"), "text")
        assert state.stored
    assert await texts(sessions, "s") == [("q", "a"), ("q1", "a1")]


async def until_version(store, least):
    async with asyncio.timeout(20):
        while (await store.get("session/me/s")).version < least:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_claim_is_renewed_while_the_turn_runs():
    """A turn that lasts longer than a claim keeps the session; its commit knows the version."""
    clock = Clock()
    store = MemoryStore(clock)
    sessions = sessions_at(clock, store, claim=0.05)
    async with sessions.turn("me", "s", 0, "long") as turn:
        await until_version(store, 4)
        record = store_pb2.SessionRecord.FromString((await store.get("session/me/s")).value)
        assert record.writer.startswith("long/")
        assert (await turn.commit(text_turn("q", "a"), "text")).stored
    assert await texts(sessions, "s") == [("q", "a")]


async def test_a_turn_that_lost_its_session_ends_early():
    """A renewal that finds another writer ends the run before more tokens are made in vain."""
    clock = Clock()
    store = MemoryStore(clock)
    sessions, other = sessions_at(clock, store, claim=0.05), sessions_at(clock, store)
    await say(sessions, "s", 0, "q", "a")
    pause = asyncio.Event()
    asked = TextAsked("s", 1, "q1")
    conversation = await Conversations(sessions).of(asked, ["q1"], "me")
    run = conversation.recorded(answering("xy", pause), request_of("slow"), Course())
    await anext(run)
    clock.now += 60
    await say(other, "s", 1, "q1", "a1")
    lost = asyncio.create_task(anext(run))
    # Whether a renewal finds out first or the commit does: it is the same to the client.
    await until_version(store, 4)
    pause.set()
    with pytest.raises(SessionConflict):
        await lost
    assert await texts(sessions, "s") == [("q", "a"), ("q1", "a1")]


@pytest.mark.parametrize("ahead", [-4.9, 4.9])
async def test_clocks_may_differ_by_half_a_claim(clock, ahead):
    """A gateway whose clock is off by less than 5 s respects a claim that is renewed in time."""
    store = MemoryStore(clock)
    one, other = sessions_at(clock, store), sessions_at(clock, store, skew=ahead)
    await one.create("me", "s")
    async with one.turn("me", "s", 0, "first"):
        clock.now += one.limits.renewal
        with pytest.raises(SessionConflict):
            await other.open("me", "s", 0)


async def test_a_claim_of_a_clock_that_is_wrong_does_not_last(clock):
    """One from a gateway an hour ahead does not block the session; its turn is just refused."""
    store = MemoryStore(clock)
    wrong, right = sessions_at(clock, store, skew=3600.0), sessions_at(clock, store)
    await right.create("me", "s")
    async with wrong.turn("me", "s", 0, "first") as turn:
        async with right.turn("me", "s", 0, "second") as second:
            await second.commit(text_turn("q", "a"), "text")
        with pytest.raises(SessionConflict):
            await turn.commit(text_turn("x", "x"), "text")
    assert await texts(right, "s") == [("q", "a")]


async def test_one_name_of_two_requests(sessions):
    """Clients choose request ids: the same one again is another turn, and no way past a claim."""
    await say(sessions, "s", 0, "q", "a", name="same")
    async with sessions.turn("me", "s", 1, "same") as turn:
        with pytest.raises(SessionConflict):
            await sessions.open("me", "s", 1)
        assert (await turn.commit(text_turn("q1", "a1", "same"), "text")).stored
    assert await texts(sessions, "s") == [("q", "a"), ("q1", "a1")]


async def test_fork(sessions):
    """A fork has the first turns, and goes its own way; the other does not hear of it."""
    for count in range(3):
        await say(sessions, "s", count, f"q{count}", f"a{count}")
    made = await sessions.fork("me", "s", 2, "f")
    assert [turn.text for turn in made.turns] == ["q0", "q1"]
    whole, _ = await say(sessions, "f", 2, "other", "way")
    assert whole == ["q0", "a0", "q1", "a1", "other"]
    assert len(await texts(sessions, "s")) == 3
    await sessions.delete("me", "s")
    assert len(await texts(sessions, "f")) == 3
    everything = await sessions.fork("me", "f")
    assert everything.id.startswith("sess-")
    assert everything.num_turns == 3
    nothing = await sessions.fork("me", "f", 0)
    assert (nothing.num_turns, nothing.kind) == (0, "")
    for turns in (-1, 4):
        with pytest.raises(InvalidParameter, match=r"\[0, 3\]"):
            await sessions.fork("me", "f", turns)
    with pytest.raises(SessionConflict, match="already"):
        await sessions.fork("me", "f", 1, "f")
    with pytest.raises(SessionNotFound):
        await sessions.fork("me", "gone")


async def test_fork_while_it_is_written(sessions):
    """A session that is being written can be forked: what is stored, without the writer."""
    await say(sessions, "s", 0, "q", "a")
    async with sessions.turn("me", "s", 1, "r"):
        await sessions.fork("me", "s", None, "f")
        await say(sessions, "f", 1, "q", "a")
    assert len(await texts(sessions, "s")) == 1


async def test_time_to_live_slides(sessions, clock):
    """A session ends so long after its last turn; its own time where it asks for one."""
    made = await sessions.create("me", "short", ttl=100)
    assert made.expires_unix == clock.now + 100
    assert made.created_unix == clock.now
    clock.now += 90
    await say(sessions, "short", 0, "q", "a")
    await sessions.close()
    assert (await sessions.get("me", "short")).expires_unix == clock.now + 100
    clock.now += 90
    assert [each.id for each in (await sessions.list("me"))[0]] == ["short"]
    clock.now += 20
    for call in (sessions.get("me", "short"), sessions.delete("me", "short")):
        with pytest.raises(SessionNotFound):
            await call
    assert await sessions.list("me") == ([], False)
    assert (await sessions.create("me")).expires_unix == clock.now + 86400
    for wrong in (0, -1, float("nan"), float("inf"), 31 * 86400):
        with pytest.raises(InvalidParameter, match="ttl"):
            await sessions.create("me", ttl=wrong)


async def test_a_session_does_not_end_under_its_turn(sessions, clock):
    """One of a very short time lives as long as its turn does."""
    await sessions.create("me", "s", ttl=0.5)
    async with sessions.turn("me", "s", 0, "r") as turn:
        clock.now += 5
        assert (await turn.commit(text_turn("q", "a"), "text")).stored
    assert await texts(sessions, "s") == [("q", "a")]
    clock.now += 1
    with pytest.raises(SessionNotFound):
        await sessions.get("me", "s")


async def test_owners_do_not_see_each_other(sessions):
    """Another key's session is not there: not to read, list, delete, fork, or go on with."""
    await say(sessions, "s", 0, "q", "a")
    for call in (
        sessions.get("you", "s"),
        sessions.delete("you", "s"),
        sessions.fork("you", "s"),
        sessions.open("you", "s", None),
        sessions.open("you", "s", 1),
    ):
        with pytest.raises(SessionNotFound):
            await call
    assert await sessions.list("you") == ([], False)
    await sessions.create("you", "s")
    assert (await sessions.get("you", "s")).num_turns == 0
    await sessions.delete("you", "s")
    assert await texts(sessions, "s") == [("q", "a")]


async def test_list_pages(sessions):
    """Pages follow each other by id and leave nothing out; deleted ones do not shorten them."""
    for number in range(25):
        await sessions.create("me", f"s{number:02}")
    for number in range(5, 15):
        await sessions.delete("me", f"s{number:02}")
    expected = [f"s{number:02}" for number in range(25) if not 5 <= number < 15]
    seen, after, more = [], "", True
    while more:
        page, more = await sessions.list("me", after, 4)
        assert all(not each.turns for each in page)
        seen += [each.id for each in page]
        after = seen[-1]
    assert seen == expected
    assert not (await sessions.list("me", "", 15))[1]
    for limit in (0, 101):
        with pytest.raises(InvalidParameter, match="limit"):
            await sessions.list("me", "", limit)


async def test_create_twice(sessions, clock):
    """An id is taken until it is deleted; the refused one does not shorten the other's time."""
    await sessions.create("me", "s", ttl=1000)
    with pytest.raises(SessionConflict, match="already"):
        await sessions.create("me", "s", ttl=1)
    clock.now += 10
    assert [each.id for each in (await sessions.list("me"))[0]] == ["s"]
    await sessions.delete("me", "s")
    await sessions.create("me", "s")
    with pytest.raises(InvalidParameter):
        await sessions.create("me", "no spaces")


async def test_deleted_while_its_turn_runs(sessions):
    """The answer is told not to be stored, and a new session of that id is not touched."""
    await say(sessions, "s", 0, "q", "a")
    for recreate in (False, True):
        before = len(await texts(sessions, "s"))
        async with sessions.turn("me", "s", before, "r") as turn:
            await sessions.delete("me", "s")
            if recreate:
                for count in range(2):
                    await say(sessions, "s", count, "new", "new")
                with pytest.raises(SessionConflict):
                    await turn.commit(text_turn("x", "x"), "text")
            else:
                state = await turn.commit(text_turn("x", "x"), "text")
                assert (state.stored, state.detail) == (
                    False,
                    "the session was deleted while the turn ran",
                )
        if not recreate:
            with pytest.raises(SessionNotFound):
                await sessions.get("me", "s")
            await say(sessions, "s", 0, "q", "a")
    assert await texts(sessions, "s") == [("new", "new")] * 2


async def test_a_store_that_comes_back_empty(clock):
    """A running turn puts its session back, with all the turns that it knows."""
    store = MemoryStore(clock)
    sessions = sessions_at(clock, store)
    await say(sessions, "s", 0, "q", "a")
    async with sessions.turn("me", "s", 1, "r") as turn:
        await store.delete("session/me/s")
        await store.index_remove("sessions/me", "s")
        assert (await turn.commit(text_turn("q1", "a1"), "text")).stored
    await sessions.close()
    assert await texts(sessions, "s") == [("q", "a"), ("q1", "a1")]
    assert [each.id for each in (await sessions.list("me"))[0]] == ["s"]


def generation(before, name="r", text="q1"):
    return store_pb2.GenerationRecord(
        request_id=name,
        owner="me",
        session_id="s",
        session_turn=before,
        turn=text_turn(text, "", name),
    )


async def resumed(sessions, record, output):
    generate = Conversations(sessions).around(lambda request, course: answering(output))
    run = generate(request_of(record.request_id), Course(), record)
    return [piece async for piece in run][-1].session


async def test_a_resumed_turn_takes_its_own_claim_over(sessions, clock):
    """After a gateway died another one goes on at once; the dead one's late commit adds nothing."""
    await say(sessions, "s", 0, "q", "a")
    opened = await sessions.open("me", "s", 1)
    dead = await Turn(sessions.desk, opened, "r").__aenter__()
    with pytest.raises(SessionConflict):
        await sessions.open("me", "s", 1)
    state = await resumed(sessions, generation(1), "a1")
    assert (state.stored, state.turns) == (True, 2)
    again = await sessions.get("me", "s")
    assert (await dead.commit(again.turns[1], "text")).stored
    await dead.__aexit__()
    assert await texts(sessions, "s") == [("q", "a"), ("q1", "a1")]


async def test_a_resumed_turn_that_is_stored_already(sessions):
    """It is told to be stored, also when the session has gone on; and it is not stored twice."""
    await say(sessions, "s", 0, "q1", "a1", name="r")
    for count in (1, 2):
        state = await resumed(sessions, generation(0), "a1")
        assert (state.stored, state.turns) == (True, 1)
        await say(sessions, "s", count, "q", "a", name="other")
    assert len(await texts(sessions, "s")) == 3


async def test_a_resumed_turn_whose_session_went_on_or_is_gone(sessions):
    """One that lost its place is refused; where the session is gone, the answer still comes."""
    await say(sessions, "s", 0, "q", "a", name="other")
    with pytest.raises(SessionConflict, match="gone on"):
        await resumed(sessions, generation(0), "x")
    async with sessions.turn("me", "s", 1, "other"):
        with pytest.raises(SessionConflict, match="request other"):
            await resumed(sessions, generation(1), "x")
    await sessions.delete("me", "s")
    state = await resumed(sessions, generation(1), "x")
    assert (state.stored, state.turns) == (False, 2)
    # The one that made the session makes it again: it went when its client did.
    assert (await resumed(sessions, generation(0), "x")).stored
    pieces = answering("x")
    generate = Conversations(sessions).around(lambda request, course: pieces)
    stateless = store_pb2.GenerationRecord(request_id="r")
    assert generate(request_of("r"), Course(), stateless) is pieces
    await pieces.aclose()


async def test_a_request_that_is_renamed_while_it_runs(sessions):
    """The turn bears the name under which the generation can be found, also in its claim."""
    record = generation(0, name="wanted")
    generate = Conversations(sessions).around(lambda request, course: answering("xy"))
    run = generate(request_of("wanted"), Course(), record)
    await anext(run)
    record.request_id = "wanted-2"
    assert (await anext(run)).session.stored
    await run.aclose()
    assert [turn.request_id for turn in (await sessions.get("me", "s")).turns] == ["wanted-2"]
    # Its client comes back; another one's request of the first name is another request.
    assert (await resumed(sessions, record, "xy")).stored
    with pytest.raises(SessionConflict):
        await resumed(sessions, generation(0, name="wanted"), "xy")


async def test_an_ending_that_nobody_stored(sessions, clock):
    """A log that has its end, of a gateway that died before it stored the turn, becomes the turn;
    a second reader finds it stored; and an answer is not withheld where that is not possible."""
    conversations, record = Conversations(sessions), generation(0)
    pieces = [piece async for piece in answering("xy")]
    first = await conversations.settled(record, request_of("r"), pieces[0])
    assert first is pieces[0]
    for _ in range(2):
        last = await conversations.settled(record, request_of("r"), pieces[-1])
        assert (last.session.stored, last.text) == (True, "y")
    assert await texts(sessions, "s") == [("q1", "xy")]
    lost = await conversations.settled(generation(0, "other"), request_of("other"), pieces[-1])
    assert (lost.session.stored, lost.session.turns) == (False, 1)
    assert "gone on" in lost.session.detail
    broken = FaultyStore(MemoryStore(clock), dict.fromkeys(range(100), "before"))
    there = Conversations(sessions_at(clock, broken))
    for before in (0, 1):
        answer = await there.settled(generation(before), request_of("r"), pieces[-1])
        assert not answer.session.stored
        assert "does not answer" in answer.session.detail


async def test_a_first_turn_with_a_record_needs_no_store(clock):
    """As without a record: served without memory, and told so; later turns are refused."""
    store = FaultyStore(MemoryStore(clock), dict.fromkeys(range(100), "before"))
    sessions = sessions_at(clock, store)
    assert not (await resumed(sessions, generation(0), "x")).stored
    with pytest.raises(StoreUnavailable):
        await resumed(sessions, generation(1), "x")


async def test_limits_of_a_session(clock):
    """A turn that would begin beyond the size is refused before it runs, and says the setting."""
    sessions = sessions_at(clock, max_bytes=1000)
    await say(sessions, "s", 0, "q" * 400, "a" * 500)
    with pytest.raises(InvalidRequest, match="limit of 1000 .--max-session-bytes"):
        await say(sessions, "s", 1, "q" * 100, "a")
    # An answer is never thrown away for its size.
    await say(sessions, "s", 1, "q", "a" * 500)
    assert len(await texts(sessions, "s")) == 2


async def test_kinds_and_stray_fields(clock):
    """A session keeps the kind that it began with; session_turn alone names no session."""
    sessions = sessions_at(clock)
    await say(sessions, "s", 0, "q", "a")

    class Chat(TextAsked):
        def turn(self):
            made = super().turn()
            made.chat.messages.add(role="user", content="x")
            return made

    with pytest.raises(InvalidParameter, match="of kind text"):
        await Conversations(sessions).of(Chat("s", 1, "x"), ["x"], "me")
    with pytest.raises(InvalidParameter, match="needs session_id"):
        await Conversations(sessions).of(TextAsked("", 0, "x"), ["x"], "me")
    with pytest.raises(InvalidRequest, match="--session-store off"):
        await Conversations(None).of(TextAsked("s", 0, "x"), ["x"], "me")
    assert (await Conversations(None).of(TextAsked("", None, "x"), ["x"], "me")).body == ["x"]


async def test_context_overflow_says_what_the_history_has(sessions):
    """Whether tokenizing or the core finds out, the message counts the history and helps."""
    await say(sessions, "s", 0, "q", "a")
    conversation = await Conversations(sessions).of(TextAsked("s", 1, "x"), ["x"], "me")

    async def refuse():
        raise ContextTooLong("the prompt has 900 tokens", param="prompt")
        yield

    with pytest.raises(ContextTooLong, match="900 tokens; .*5 tokens are the history.*fork"):
        await conversation.prepared(anext(refuse()))
    run = conversation.recorded(refuse(), request_of("r"), Course())
    with pytest.raises(ContextTooLong, match="5 tokens are the history of session 's' and about 0"):
        await anext(run)
    await say(sessions, "s", 1, "q", "a")


async def test_affinity(sessions):
    """The next turn's run is told who has the history's keys and values, and so is a fork's."""
    holders = []
    for count, holder in enumerate(["v1:1", "v2:2", ""]):
        asked = TextAsked("s", count, "q")
        conversation = await Conversations(sessions).of(asked, ["q"], "me")
        course = Course()
        run = conversation.recorded(answering("a"), request_of("r"), course)
        async for piece in run:
            if piece.finish_reason is None:
                holders.append(course.kv_holder)
                course.kv_holder = holder
    assert holders == ["", "v1:1", "v2:2"]
    await sessions.fork("me", "s", 1, "f")
    opened = await sessions.open("me", "f", 1)
    assert opened.record.prefix.length == 5


async def test_no_task_outlives_the_sessions(sessions):
    """After `close` no keeper and no release is left."""
    before = asyncio.all_tasks()
    with contextlib.suppress(ZeroDivisionError):
        async with sessions.turn("me", "s", 0, "r"):
            1 / 0  # noqa: B018
    await say(sessions, "s", 0, "q", "a")
    await sessions.close()
    assert asyncio.all_tasks() == before


async def test_leaving_does_not_wait_for_a_store_that_hangs(clock):
    """A turn that is cancelled ends soon, though the store takes for ever to free its session."""
    store = FaultyStore(MemoryStore(clock), {})
    sessions = sessions_at(clock, store)
    turn = Turn(sessions.desk, Opened(sessions.new("me", "s"), 0, 0, made=True), "r")
    await turn.__aenter__()
    store.patience = 3600.0
    store.faults = dict.fromkeys(range(store.calls, store.calls + 10), "hang")
    async with asyncio.timeout(10):
        await turn.__aexit__()
        await sessions.close()


async def test_a_session_with_turns_needs_the_store(clock):
    """Without the store a turn is refused, but for a first one, which says that it is not kept."""
    store = FaultyStore(MemoryStore(clock), {})
    sessions = sessions_at(clock, store)
    await say(sessions, "s", 0, "q", "a")
    store.faults = dict.fromkeys(range(1000), "before")
    for expected in (None, 1):
        with pytest.raises(StoreUnavailable):
            await say(sessions, "s", expected, "q", "a")
    whole, state = await say(sessions, "new", 0, "q", "a")
    assert whole == ["q"]
    assert (state.stored, state.turns) == (False, 1)
    assert "does not answer" in state.detail
    store.faults = {}
    with pytest.raises(SessionNotFound):
        await sessions.get("me", "new")


@pytest.mark.parametrize("fault", ["before", "after", "hang"])
async def test_one_failure_at_the_commit_costs_nothing(clock, fault):
    """A commit that is not confirmed is tried again, and the turn is stored once."""
    store = FaultyStore(MemoryStore(clock), {})
    sessions = sessions_at(clock, store)
    await say(sessions, "s", 0, "q", "a")
    async with sessions.turn("me", "s", 1, "r") as turn:
        await asyncio.sleep(0)
        store.faults = {store.calls: fault}
        assert (await turn.commit(text_turn("q1", "a1"), "text")).stored
    assert await texts(sessions, "s") == [("q", "a"), ("q1", "a1")]


async def test_a_renewal_that_was_not_confirmed_is_still_ours(clock, eventually):
    """A renewal that was written, but timed out, does not make the turn lose its session."""
    store = FaultyStore(MemoryStore(clock), {})
    sessions = sessions_at(clock, store, claim=0.2)
    async with sessions.turn("me", "s", 0, "r") as turn:
        await asyncio.sleep(0)
        first = store.calls
        store.faults = {first: "after"}
        await eventually(lambda: store.calls > first)
        assert (await turn.commit(text_turn("q", "a"), "text")).stored
    assert await texts(sessions, "s") == [("q", "a")]
