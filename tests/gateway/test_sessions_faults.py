"""A store that fails at any of its calls: no wrong answer, no acknowledged turn lost."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.core.errors import SessionConflict, SessionNotFound, StoreUnavailable
from slipstream.store import MemoryStore
from tests.gateway.conversing import Clock, FaultyStore, say, sessions_at

KINDS = ("before", "after", "hang")
TURNS = 3
# Without faults, a turn is a read, a claim, a commit, and its place in the index, twice; the first
# one takes a place first.
CALLS = 5 * TURNS + 1


class Client:
    """Speaks the protocol as documented, through any number of gateways of one store.

    Attributes:
        acknowledged: texts and outputs of the turns that were said to be stored.
    """

    def __init__(self, faults: dict[int, str]) -> None:
        self.clock = Clock()
        self.inner = MemoryStore(self.clock)
        self.faulty = FaultyStore(self.inner, faults, patience=0.001)
        self.acknowledged: list[tuple[str, str]] = []
        self.sent = 0

    async def talk(self) -> None:
        for number in range(TURNS):
            for attempt in range(4):
                # Each try at another gateway, after the claim of a lost one has lapsed.
                if await self._try(f"q{number}.{attempt}"):
                    break
                self.clock.now += 11

    async def _try(self, text: str) -> bool:
        """Whether the client goes on to its next turn."""
        sessions = sessions_at(self.clock, self.faulty)
        self.sent += 1
        known, output = list(self.acknowledged), f"a{self.sent}"
        name = f"r{self.sent}"
        try:
            whole, state = await say(sessions, "s", len(known), text, output, name)
        except StoreUnavailable:
            assert self.faulty.faults
            return False
        except (SessionConflict, SessionNotFound):
            # What was not confirmed, or is held by a claim that nobody could free.
            assert self.faulty.faults
            await self._read()
            return False
        finally:
            await sessions.close()
        assert whole == [word for turn in known for word in turn] + [text]
        assert state.turns == len(known) + 1
        if state.stored:
            self.acknowledged.append((text, output))
            return True
        assert state.detail
        await self._read()
        return (text, output) in self.acknowledged

    async def _read(self) -> None:
        """Takes over what the session has: all that was acknowledged, and maybe one more turn."""
        there = await self.stored()
        assert there[: len(self.acknowledged)] == self.acknowledged
        assert len(there) <= len(self.acknowledged) + 1
        self.acknowledged = there

    async def stored(self) -> list[tuple[str, str]]:
        try:
            session = await sessions_at(self.clock, self.inner).get("me", "s")
        except SessionNotFound:
            return []
        return [(turn.text, turn.output_text) for turn in session.turns]


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.integers(0, CALLS + 8), st.sampled_from(KINDS), max_size=4))
def test_faults_anywhere(faults):
    """Whichever calls fail, in whatever way: prompts are right and acknowledged turns are there."""

    async def run() -> None:
        client = Client(faults)
        await client.talk()
        there = await client.stored()
        assert there[: len(client.acknowledged)] == client.acknowledged
        assert len(there) == len(set(there)) <= len(client.acknowledged) + 1
        if not faults:
            assert len(there) == TURNS == client.sent

    asyncio.run(run())


def test_each_single_fault():
    """One failing call, each in turn and in each way, costs at most one answer's memory."""

    async def run(call: int, kind: str) -> int:
        client = Client({call: kind})
        await client.talk()
        assert len(client.acknowledged) == TURNS
        assert await client.stored() == client.acknowledged
        return client.faulty.calls

    least = asyncio.run(run(10_000, "before"))
    assert least == CALLS
    for call in range(CALLS):
        for kind in KINDS:
            assert asyncio.run(run(call, kind)) >= least - 1, (call, kind)
