"""A verifier that is about to stop: who is told, who is refused, and what it waits for."""

from __future__ import annotations

import asyncio

import pytest

from slipstream.core.errors import Draining
from tests.verifier.test_servicer import Call, Engine, asking, serving, stream, tokens
from verifier_service.departure import Departure
from verifier_service.generation import Finish, Progress
from verifier_service.outbox import Outbox
from verifier_service.servicer import VerifierServicer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_stream_is_told_once_and_goes_on() -> None:
    """A stream that has nothing to say hears at once how long it may go on, in a message of its
    own; then it goes on to its end."""
    call, departure = Call(), Departure(clock=Clock())
    async with stream(call, departure=departure) as (engine, task):
        engine.tell(Progress(tokens(2)))
        assert len((await call.read()).tokens) == 2
        departure.begin(7.5)
        departure.begin(99.0)
        warning = await call.read()
        assert warning.draining_seconds == 7.5
        warning.ClearField("draining_seconds")
        assert warning.ByteSize() == 0
        engine.tell(Progress(tokens(3)))
        engine.tell(Progress(tokens(1), finish=Finish.LENGTH))
        last = await call.read()
        while not last.finish_reason:
            assert not last.HasField("draining_seconds")
            last = await call.read()
        await task
        assert call.sent.empty()


async def test_nothing_new_is_taken() -> None:
    """A request that comes afterwards is refused, in a kind of its own."""
    departure = Departure()
    servicer = serving(engine := Engine(), departure=departure)
    departure.begin(5.0)
    handler = VerifierServicer.Generate.__wrapped__  # type: ignore[attr-defined]
    with pytest.raises(Draining) as refused:
        await handler(servicer, asking(), Call())
    assert (refused.value.grpc_status, refused.value.code) == ("UNAVAILABLE", "draining")
    assert engine.tell is None


async def test_a_stream_that_outlives_the_grace_is_cut_in_words() -> None:
    """It ends as something that may be resumed elsewhere, and its generation is freed."""
    call, departure = Call(), Departure()
    async with stream(call, departure=departure) as (engine, task):
        departure.begin(0.0)
        await departure.over()
        departure.cut()
        with pytest.raises(Draining, match="grace is over"):
            await task
        assert engine.cancelled == 1


async def test_it_waits_for_streams_and_then_for_who_moved() -> None:
    """It is over when no stream is left and nobody has pulled for a second since."""
    clock, pulls = Clock(), [0]
    departure = Departure(lambda: pulls[0], clock)
    outbox = Outbox()
    with departure.stream(outbox):
        departure.begin(60.0)
        waiting = asyncio.create_task(departure.over())
        clock.now += 30.0
        assert await _goes_on(waiting)
    clock.now += 0.5
    pulls[0] = 1
    assert await _goes_on(waiting)
    clock.now += 5.0
    assert await _goes_on(waiting)
    pulls[0] = 0
    clock.now += 1.0
    assert await _ends(waiting)


async def test_it_waits_no_longer_than_its_grace() -> None:
    """Streams and pulls that do not end hold it up until the grace is over, not longer."""
    clock = Clock()
    departure = Departure(lambda: 1, clock)
    with departure.stream(Outbox()):
        departure.begin(60.0)
        waiting = asyncio.create_task(departure.over())
        assert await _goes_on(waiting)
        clock.now += 60.0
        assert departure.seconds_left == 0.0
        assert await _ends(waiting)


async def test_an_idle_one_leaves_at_once() -> None:
    """Who had no stream for a while has nobody to wait for; one that just had waits a moment."""
    clock = Clock()
    idle, fresh = Departure(clock=clock), Departure(clock=clock)
    with fresh.stream(Outbox()):
        pass
    tasks = []
    for departure in (idle, fresh):
        departure.begin(60.0)
        tasks.append(asyncio.create_task(departure.over()))
    assert await _ends(tasks[0])
    assert await _goes_on(tasks[1])
    clock.now += 1.1
    assert await _ends(tasks[1])


async def _ends(task: asyncio.Task[None]) -> bool:
    """Whether it ends, at its next look or when the machine lets it have one."""
    return bool((await asyncio.wait([task], timeout=60.0))[0])


async def _goes_on(task: asyncio.Task[None]) -> bool:
    """Whether it does not end now; it looks every twentieth of a second."""
    return not (await asyncio.wait([task], timeout=0.15))[0]


async def test_an_outbox_that_is_woken_or_cut() -> None:
    """Woken with nothing to say it gives None, once; cut it gives the error and nothing else."""
    outbox = Outbox()
    outbox.wake()
    assert await outbox.take() is None
    outbox.put(Progress(tokens(1)))
    outbox.wake()
    taken = await outbox.take()
    assert taken is not None
    assert len(taken.tokens) == 1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await outbox.take()
    outbox.put(Progress(tokens(1)))
    outbox.cut(Draining("over"))
    with pytest.raises(Draining):
        await outbox.take()
