"""Random work on sessions, against a model in plain Python."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from gateway.sessions.turn import Turn
from slipstream.core.errors import SessionConflict, SessionNotFound
from slipstream.store import MemoryStore
from tests.gateway.conversing import Clock, sessions_at, text_turn

CLAIM = 10.0
TTL = 1000.0
IDS = st.sampled_from(["a", "b"])
OWNERS = st.sampled_from(["me", "you"])


@dataclass
class Kept:
    """A session as it must be: who holds its document, until when, and when it ends."""

    created: int
    ttl: float
    turns: list[str] = field(default_factory=list)
    writer: Running | None = None
    until: float = 0.0
    ends: float = 0.0


@dataclass
class Running:
    """A turn that runs, with the session as it found it."""

    key: tuple[str, str]
    turn: Turn
    created: int
    ttl: float
    turns: list[str]
    made: bool


class SessionMachine(RuleBasedStateMachine):
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.store = MemoryStore(self.clock)
        # Two gateways.
        self.sessions = [sessions_at(self.clock, self.store, ttl=TTL) for _ in range(2)]
        self.kept: dict[tuple[str, str], Kept] = {}
        # Deleted ones, for as long as late writers may come.
        self.buried: dict[tuple[str, str], float] = {}
        self.count = 0

    def run(self, work):
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.run(asyncio.sleep(0))
        self.run(asyncio.sleep(0))
        self.loop.close()

    def there(self, key) -> Kept | None:
        found = self.kept.get(key)
        if found is not None and found.ends <= self.clock.now:
            del self.kept[key]
            return None
        return found

    def gateway(self):
        self.count += 1
        return self.sessions[self.count % 2]

    def expect(self, error, work) -> bool:
        """Whether `work` is to go well; where an error is expected, that it comes."""
        if error is None:
            return True
        with pytest.raises(error):
            self.run(work())
        return False

    @rule(owner=OWNERS, session=IDS, ttl=st.sampled_from([5.0, TTL]))
    def create(self, owner, session, ttl):
        gateway, key = self.gateway(), (owner, session)
        taken = SessionConflict if self.there(key) else None
        if self.expect(taken, lambda: gateway.create(owner, session, ttl)):
            self.run(gateway.create(owner, session, ttl))
            now = self.clock.now
            self.kept[key] = Kept(int(now), ttl, ends=now + ttl)
            self.buried.pop(key, None)

    @rule(owner=OWNERS, session=IDS)
    def delete(self, owner, session):
        gateway, key = self.gateway(), (owner, session)
        gone = None if self.there(key) else SessionNotFound
        if self.expect(gone, lambda: gateway.delete(owner, session)):
            self.run(gateway.delete(owner, session))
            self.bury(key)

    def bury(self, key) -> None:
        del self.kept[key]
        self.buried[key] = self.clock.now + 600

    @rule(owner=OWNERS, session=IDS, other=IDS, count=st.integers(0, 2))
    def fork(self, owner, session, other, count):
        gateway, found = self.gateway(), self.there((owner, session))
        error = None
        if found is None:
            error = SessionNotFound
        elif count > len(found.turns):
            count = len(found.turns)
        if error is None and self.there((owner, other)):
            error = SessionConflict
        if self.expect(error, lambda: gateway.fork(owner, session, count, other)):
            self.run(gateway.fork(owner, session, count, other))
            now = self.clock.now
            turns = found.turns[:count]
            self.kept[owner, other] = Kept(int(now), found.ttl, turns, ends=now + found.ttl)
            self.buried.pop((owner, other), None)

    @rule(target=running, owner=OWNERS, session=IDS, offset=st.sampled_from([0, 0, 0, 1, None]))
    def begin(self, owner, session, offset):
        gateway, key = self.gateway(), (owner, session)
        found, now = self.there(key), self.clock.now
        turns = [] if found is None else found.turns
        expected = None if offset is None else len(turns) + offset
        error = None
        if found is None and expected != 0:
            error = SessionNotFound
        elif found is not None and (
            expected not in {None, len(turns)} or (found.writer and found.until > now)
        ):
            error = SessionConflict
        if not self.expect(error, lambda: gateway.open(owner, session, expected)):
            return None
        opened = self.run(gateway.open(owner, session, expected))
        assert [turn.text for turn in opened.record.turns] == turns
        turn = self.run(Turn(gateway.desk, opened, f"r{self.count}").__aenter__())
        made = found is None
        kept = found or Kept(int(now), TTL)
        self.kept[key] = kept
        self.buried.pop(key, None)
        running = Running(key, turn, kept.created, kept.ttl, list(turns), made)
        kept.writer, kept.until = running, now + CLAIM
        kept.ends = now + max(kept.ttl, 2 * CLAIM)
        return running

    @rule(turn=consumes(running))
    def commit(self, turn):
        if turn is None:
            return
        self.count += 1
        text, found = f"t{self.count}", self.there(turn.key)
        work = turn.turn.commit(text_turn(text, "x", f"{self.count}"), "text")
        if found is None and self.buried.get(turn.key, 0) > self.clock.now:
            assert not self.run(work).stored
        elif found is None or self.may_write(turn, found):
            assert self.run(work).stored
            now, turns = self.clock.now, [*turn.turns, text]
            self.kept[turn.key] = Kept(turn.created, turn.ttl, turns, ends=now + turn.ttl)
        else:
            with pytest.raises(SessionConflict):
                self.run(work)
        self.leave(turn)

    def may_write(self, turn: Running, found: Kept) -> bool:
        if found.writer is turn:
            return True
        free = not (found.writer and found.until > self.clock.now)
        as_it_was = (found.created, found.ttl, found.turns) == (
            turn.created,
            turn.ttl,
            turn.turns,
        )
        return free and as_it_was

    @rule(turn=consumes(running))
    def cancel(self, turn):
        if turn is None:
            return
        found = self.there(turn.key)
        self.leave(turn)
        if found is not None and found.writer is turn:
            if turn.made:
                self.bury(turn.key)
            else:
                found.writer, found.ends = None, self.clock.now + found.ttl

    def leave(self, turn) -> None:
        self.run(turn.turn.__aexit__())
        for sessions in self.sessions:
            self.run(sessions.close())

    @rule(seconds=st.sampled_from([1.0, 11.0, 25.0, 700.0, 2000.0]))
    def wait(self, seconds):
        # Turns that run give no sign of life meanwhile: as if their gateways hung.
        self.clock.now += seconds

    @invariant()
    def same(self):
        for owner in ("me", "you"):
            for session in ("a", "b"):
                key = (owner, session)
                found = self.there(key)
                if found is None:
                    with pytest.raises(SessionNotFound):
                        self.run(self.gateway().get(owner, session))
                else:
                    there = self.run(self.gateway().get(owner, session))
                    assert [turn.text for turn in there.turns] == found.turns
                    assert there.created_unix == found.created


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
