"""How verifiers are lost, how that is found out, and for how long somebody else is looked for."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time

import grpc
import pytest

from gateway.course import Course, Past
from gateway.terms import Terms
from gateway.verifiers.link import VerifierLink
from gateway.verifiers.served import Limits, Lost
from slipstream.core.errors import (
    Corrupted,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    Unavailable,
)
from slipstream.discovery.slices import Endpoint
from slipstream.wire.fakes import FakeBehaviour
from slipstream.wire.proto import types_pb2, verifier_pb2
from tests.gateway.pooled import core, past_message

TOKENS = [5, 6, 7, 8, 9, 10, 11, 12]
SLOW = FakeBehaviour(TOKENS, delay=0.02)
HANGING = FakeBehaviour(TOKENS, hang_after=3)

# A verifier in a process of its own, which can be stopped in earnest.
SCRIPT = """
import asyncio
from slipstream.wire.fakes import FakeBehaviour, FakeVerifier
from slipstream.wire.proto import types_pb2, verifier_pb2

async def main():
    model = verifier_pb2.GetModelResponse(
        model_id="fake", fingerprint="f", context_length=256, vocab_size=512, eos_token_ids=[2]
    )
    fake = FakeVerifier(FakeBehaviour([5, 6, 7, 8, 9, 10, 11, 12], hang_after=3, beat=0.05), model)
    print(await fake.start(), flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


def busy(fakes):
    """The one that runs something, and the other one."""
    return sorted(fakes, key=lambda fake: -fake.running)


async def rest_of(pieces):
    return [token.id async for piece in pieces for token in piece.tokens]


async def begun(made, course=None, count=1, **fields):
    """A request that has so many tokens; the rest of its pieces."""
    pieces = made.pieces(course, **fields)
    async for piece in pieces:
        if piece.completion_tokens >= count:
            return pieces
    raise AssertionError("it ended before that")


def failovers(made):
    return {reason: count for reason, count in made.metrics.failovers.items() if count}


async def test_a_verifier_that_is_killed(tokenizer):
    """All its requests go on elsewhere, those without a token included, and none is sent twice."""
    async with core(tokenizer, FakeBehaviour(TOKENS, delay=0.02, first_delay=0.02)) as made:
        running = [asyncio.create_task(made.tokens()) for _ in range(20)]
        first, second = made.fakes
        while not first.sent.total():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        late = [asyncio.create_task(made.tokens()) for _ in range(4)]
        while sum(made.requests()) < 24:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        count = first.running
        await first.stop()
        assert await asyncio.gather(*running, *late) == [TOKENS] * 24
        assert sum(made.requests()) == 24 + count
        assert failovers(made) == {"connection": count}
        assert sum(request.resumed for request in second.requests) == count
        await made.until_states(serving=1, lost=1)


async def test_all_die_and_one_comes_back(tokenizer):
    """A generation waits for a verifier, whichever, and goes on; the pause is counted."""
    async with core(tokenizer, SLOW) as made:
        pieces = await begun(made)
        for fake in made.fakes:
            await fake.stop()
        rest = asyncio.create_task(rest_of(pieces))
        await made.until_states(lost=2)
        # Nothing new is let in meanwhile.
        with pytest.raises(Unavailable):
            await made.tokens()
        await made.fakes[1].start(made.fakes[1].address)
        assert TOKENS[-len(await rest) :] == rest.result()
        assert made.metrics.failover_pause.count == 1
        await made.until_states(serving=1, lost=1)
        assert await made.tokens() == TOKENS


async def test_a_single_verifier_that_is_restarted(tokenizer):
    """An orderly stop (finish reason CANCELLED) and a new process at the same place: one answer."""
    async with core(tokenizer, FakeBehaviour(TOKENS, breaks={4: "finish"}), [{}]) as made:
        assert await made.tokens() == TOKENS
        assert failovers(made) == {"cancelled": 1}
        assert list(made.fakes[0].requests[1].committed_token_ids) == TOKENS[:4]
        made.fakes[0].behaviour = FakeBehaviour(TOKENS, dies_after=5)
        running = asyncio.create_task(made.tokens())
        await made.until_states(lost=1)
        made.fakes[0].behaviour = SLOW
        await made.fakes[0].start(made.fakes[0].address)
        assert await running == TOKENS


async def test_nobody_comes_back(tokenizer):
    """After --failover-timeout the client is told; where its deadline is sooner, of that."""
    async with core(tokenizer, HANGING, [{}], failover=0.2) as made:
        pieces = await begun(made, count=3)
        hasty = await begun(made, count=3, terms=Terms(deadline=time.monotonic() + 60.0))
        await made.fakes[0].stop()
        with pytest.raises(Unavailable, match="lost"):
            await anext(pieces)
        with pytest.raises(Unavailable, match="lost"):
            await anext(hasty)
    async with core(tokenizer, HANGING, [{}]) as made:
        terms = Terms(deadline=time.monotonic() + 60.0)
        pieces = await begun(made, count=3, terms=terms)
        await made.fakes[0].stop()
        # However long the tokens took.
        object.__setattr__(terms, "deadline", time.monotonic() + 0.2)
        with pytest.raises(DeadlineExceeded) as raised:
            await anext(pieces)
        assert raised.value.param == "timeout"
        assert made.pool.calls == 0


async def test_a_query_of_death(tokenizer):
    """A request that kills whoever takes it kills a few, and not all."""
    async with core(tokenizer, TOKENS, [{}] * 6, failovers=2) as made:
        for fake in made.fakes:
            fake.behaviour = FakeBehaviour(TOKENS, dies_after=2)
        with pytest.raises(Unavailable):
            await made.tokens()
        assert sum(made.requests()) == 3
        await made.until_states(serving=3, lost=3)
        # One that gets on between may lose more than that.
        for place, fake in enumerate(made.fakes):
            fake.requests.clear()
            fake.behaviour = FakeBehaviour(TOKENS, breaks={place + 1: "internal"})
        assert await made.tokens() == TOKENS


async def test_verifiers_that_cannot_be_reached_kill_nobody(tokenizer, monkeypatch):
    """What never reached a verifier is not held against the request."""
    async with core(tokenizer, HANGING, [{}] * 4, failovers=1) as made:
        pieces = await begun(made, count=3)
        # The pool does not hear of their end by itself.
        monkeypatch.setattr(VerifierLink, "beat", lambda link: asyncio.sleep(0))
        running, *others = busy(made.fakes)
        for fake in others:
            await fake.stop()
        await running.stop()
        rest = asyncio.create_task(rest_of(pieces))
        while made.pool.states()["lost"] < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        monkeypatch.undo()
        others[0].behaviour = FakeBehaviour(TOKENS)
        await others[0].start(others[0].address)
        assert await rest == TOKENS[3:]


async def test_failover_can_be_turned_off(tokenizer):
    """--max-failovers 0: every loss is told, at once, and nobody else is asked."""
    async with core(tokenizer, TOKENS, failovers=0) as made:
        for how in ("unavailable", "end", "finish", "cancelled"):
            for fake in made.fakes:
                fake.behaviour = FakeBehaviour(TOKENS, breaks={2: how})
                fake.requests.clear()
            with pytest.raises(Unavailable):
                await made.tokens()
            assert sum(made.requests()) == 1
            await made.until_states(serving=2)
        for fake in made.fakes:
            fake.behaviour = SLOW
        pieces = await begun(made)
        await busy(made.fakes)[0].drain()
        assert await rest_of(pieces) == TOKENS[1:]
        assert failovers(made) == {}


async def test_a_verifier_that_answers_nothing(tokenizer, eventually):
    """One whose process stands still, without closing anything, is lost after --lost-after with all
    its streams; once it goes on it serves again."""
    async with core(tokenizer, HANGING) as made:
        streams = [await begun(made, count=3) for _ in range(4)]
        first, second = made.fakes
        count = first.running
        assert count
        second.behaviour = FakeBehaviour(TOKENS)
        first.freeze()
        made.strict(first, lost_after=1.0)
        rests = [asyncio.create_task(rest_of(pieces)) for pieces in streams]
        await made.until_states(serving=1, lost=1)
        await eventually(lambda: sum(rest.done() for rest in rests) >= count)
        assert [rest.result() for rest in rests if rest.done()] == [TOKENS[3:]] * count
        assert failovers(made) == {"heartbeat": count}
        first.thaw()
        made.strict(first)
        await made.until_states(serving=2)
        await second.stop()
        first.behaviour = FakeBehaviour(TOKENS)
        await asyncio.wait(rests, timeout=20.0)
        assert [rest.result() for rest in rests] == [TOKENS[3:]] * 4


async def test_a_process_that_is_stopped(tokenizer):
    """The same with a real SIGSTOP, after which no message of any stream comes, and SIGCONT."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, stdout=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            address = (await process.stdout.readline()).decode().strip()
        async with core(tokenizer, TOKENS, [{}], spec=address) as made:
            await made.until_states(serving=1)
            pieces = await begun(made, count=3)
            await made.pool._update([Endpoint(address), Endpoint(made.fakes[0].address)])
            await made.until_states(serving=2)
            process.send_signal(signal.SIGSTOP)
            made.strict(address, lost_after=1.0)
            assert await rest_of(pieces) == TOKENS[3:]
            assert failovers(made) == {"heartbeat": 1}
            await made.until_states(serving=1, lost=1)
            process.send_signal(signal.SIGCONT)
            await made.until_states(serving=2)
    finally:
        process.kill()
        await process.wait()


async def test_a_connection_that_leads_nowhere(tokenizer, eventually):
    """Where packets vanish, the next connection may do better: a lost verifier is called anew."""
    async with core(tokenizer, HANGING, [{}]) as far:
        [fake] = far.fakes
        host, _, port = fake.address.rpartition(":")
        connections = []

        async def carry(reader, writer, open_):
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    if open_.is_set():
                        writer.write(data)

        async def proxy(reader, writer):
            there = await asyncio.open_connection(host, port)
            open_ = asyncio.Event()
            open_.set()
            both = [carry(reader, there[1], open_), carry(there[0], writer, open_)]
            tasks = [asyncio.create_task(way) for way in both]
            connections.append((open_, tasks))
            await asyncio.wait(tasks)
            for end in (writer, there[1]):
                end.close()

        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with core(tokenizer, TOKENS, [], spec=address) as made:
            await made.until_states(serving=1)
            pieces = await begun(made, count=3)
            fake.behaviour = FakeBehaviour(TOKENS)
            for open_, _ in connections:
                open_.clear()
            made.strict(address, lost_after=0.5)
            rest = asyncio.create_task(rest_of(pieces))
            await made.until_states(lost=1)
            # The connection is another one by now, or will be with the next heartbeat.
            await eventually(lambda: len(connections) > 1)
            made.strict(address)
            async with asyncio.timeout(20):
                assert await rest == TOKENS[3:]
            assert failovers(made) == {"heartbeat": 1}
        server.close()
        for _, tasks in connections:
            for task in tasks:
                task.cancel()


async def test_one_silent_stream(tokenizer):
    """One stream that says nothing while its verifier lives goes on elsewhere, once."""
    # All that comes before the silence is one message, of which a busy machine makes no two.
    silent = FakeBehaviour(TOKENS, chunks=(3,), hang_after=3)
    async with core(tokenizer, silent, idle=0.2) as made:
        pieces = await begun(made, count=3)
        first, second = busy(made.fakes)
        second.behaviour = FakeBehaviour(TOKENS)
        made.strict(second, idle=60.0)
        assert await rest_of(pieces) == TOKENS[3:]
        assert failovers(made) == {"silent": 1}
        await made.until_states(serving=2)
        made.strict(second, idle=0.2)
        second.behaviour = silent
        with pytest.raises(DeadlineExceeded, match="nothing for"):
            await made.tokens()
        assert failovers(made) == {"silent": 2}
        # Signs of life are enough while it resumes.
        alive = FakeBehaviour(TOKENS, hang_after=3, beat=0.05)
        first.behaviour = second.behaviour = alive
        for fake in made.fakes:
            made.strict(fake, idle=1.0)
        terms = Terms(deadline=time.monotonic() + 1.6)
        with pytest.raises(DeadlineExceeded) as raised:
            await made.tokens(Course(pasts=[Past((past_message(TOKENS[:3]),), 0)]), terms=terms)
        assert raised.value.param == "timeout"


async def test_draining_with_another(tokenizer):
    """A verifier that stops hands over what it runs, with its keys and values, and gets nothing."""
    async with core(tokenizer, SLOW) as made:
        course = Course()
        pieces = await begun(made, course)
        first, second = busy(made.fakes)
        await first.drain()
        assert await rest_of(pieces) == TOKENS[1:]
        [moved] = second.requests
        assert moved.kv_holder == first.model.kv_address
        assert moved.resumed
        assert course.kv_holder == second.model.kv_address
        assert failovers(made) == {"draining": 1}
        # Sooner than its next heartbeat says so.
        assert await made.tokens() == TOKENS
        assert made.pool.states()["draining"] == 1
        assert len(first.requests) == 1


async def test_draining_without_another(tokenizer):
    """It may finish where it is; where another one comes in time, it goes there."""
    async with core(tokenizer, SLOW, [{}]) as made:
        pieces = await begun(made)
        await made.fakes[0].drain()
        with pytest.raises(Unavailable):
            await made.tokens()
        assert await rest_of(pieces) == TOKENS[1:]
        assert failovers(made) == {}
    async with core(tokenizer, FakeBehaviour(TOKENS, hang_after=3, beat=0.02)) as made:
        first, second = made.fakes
        second.behaviour = FakeBehaviour(TOKENS)
        await second.stop()
        await made.until_states(serving=1, lost=1)
        rest = asyncio.create_task(rest_of(await begun(made, count=3)))
        await first.drain()
        await made.until_states(draining=1, lost=1)
        await second.start(second.address)
        assert await rest == TOKENS[3:]
        assert failovers(made) == {"draining": 1}


async def test_what_has_begun_waits_for_room(tokenizer, eventually):
    """Load, drains and absence are waited out by a generation that was taken before."""
    course = Course(pasts=[Past((past_message(TOKENS[:2]),), 2)])
    full = FakeBehaviour(TOKENS, error=Overloaded("full", retry_after=60.0))
    async with core(tokenizer, full) as made:
        running = asyncio.create_task(made.tokens(course))
        await eventually(lambda: sum(made.requests()) > 4)
        assert all(request.resumed for fake in made.fakes for request in fake.requests)
        for fake in made.fakes:
            fake.behaviour = FakeBehaviour(TOKENS)
        assert await running == TOKENS[2:]
        for fake in made.fakes:
            await fake.stop()
        await made.until_states(lost=2)
        running = asyncio.create_task(made.tokens(course))
        await asyncio.sleep(0.05)
        await made.fakes[0].start(made.fakes[0].address)
        assert await running == TOKENS[2:]
        for fake in made.fakes:
            await fake.stop()
        await made.until_states(lost=2)
        # What is complete needs nobody.
        done = past_message(TOKENS)
        done.finish_reason = types_pb2.FINISH_REASON_STOP
        assert await made.tokens(Course(pasts=[Past((done,), 5)])) == TOKENS[5:]
    async with core(tokenizer, full, failover=0.3) as made:
        with pytest.raises(Overloaded):
            await made.tokens(course)
        assert sum(made.requests()) >= 2


async def test_errors_of_the_verifier_itself(tokenizer):
    """An engine that failed may be another one's success; where there is no other, it is told."""
    async with core(tokenizer, TOKENS) as made:
        broken = FakeBehaviour(TOKENS, error=InternalError("the step failed"), error_after=2)
        first, second = made.fakes
        first.behaviour = second.behaviour = broken
        with pytest.raises(InternalError, match="step"):
            await made.tokens()
        assert made.requests() == [1, 1]
        second.behaviour = FakeBehaviour(TOKENS)
        second.waiting = 50
        await made.tell()
        assert await made.tokens() == TOKENS
        first.behaviour = FakeBehaviour(TOKENS, error=Corrupted("bytes"), error_after=2)
        assert await made.tokens() == TOKENS
        assert failovers(made) == {"error": 2, "corrupted": 1}


async def test_a_message_that_cannot_be_read():
    """Bytes that are no message of ours end the stream as lost, not as a fault of ours."""

    async def generate(request, context):
        yield b"\xff\xff\xff"

    server = grpc.aio.server()
    handlers = {"Generate": grpc.unary_stream_rpc_method_handler(generate)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("slipstream.v1.VerifierService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    link = VerifierLink(f"127.0.0.1:{port}", Limits())
    request = verifier_pb2.GenerateRequest(prompt_token_ids=[5])
    async with contextlib.aclosing(
        link.generate(request, first_by=time.monotonic() + 60)
    ) as stream:
        with pytest.raises(Lost) as raised:
            await anext(stream)
    assert raised.value.reason == "corrupted"
    assert link.calls == 0
    await link.close()
    await server.stop(0)


async def test_who_leaves_while_nobody_serves(tokenizer, eventually):
    """A client that goes away while its generation waits for a verifier leaves nothing behind."""
    async with core(tokenizer, HANGING, [{}]) as made:
        pieces = await begun(made, count=3)
        await made.fakes[0].stop()
        before = len(asyncio.all_tasks())
        waiting = asyncio.create_task(anext(pieces))
        await made.until_states(lost=1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await pieces.aclose()
        assert made.pool.calls == 0
        await eventually(lambda: len(asyncio.all_tasks()) <= before)
