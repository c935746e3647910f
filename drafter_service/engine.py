"""The drafter's engine: runs ahead of every open sequence, and rolls back when contradicted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from drafter_service.confidence import EarlyStop
from drafter_service.counters import DraftCounters
from drafter_service.draft import Draft, Part, Work
from drafter_service.guesses import Assist
from drafter_service.open_drafts import OpenDrafts, Send
from drafter_service.room import Room
from drafter_service.stage import Drawn, LocalStage, Stage
from slipstream.core.draft import Command
from slipstream.engine.batch import Segment
from slipstream.engine.loop import EngineLoop
from slipstream.engine.runner import ModelRunner

log = logging.getLogger(__name__)
_PREFILL_CHUNK = 256


class DrafterEngine(EngineLoop):
    """Drafts for all open sequences, on a thread of its own. Never waited for, never waits.

    Args:
        send: takes a connection's number, proposals and refusals, on the engine's thread.
        stage: computes the passes; the model in this process where None.
        assist: guesses what the model will draw; nobody where None.
        early_stop: says when to pause for want of confidence; never where None.
        parts: what else follows the sequences.
        compute_on: moves this process to other cores, where a verifier may ask for that.
    """

    def __init__(
        self,
        runner: ModelRunner,
        send: Send,
        *,
        max_sequences: int = 128,
        stage: Stage | None = None,
        assist: Assist | None = None,
        early_stop: EarlyStop | None = None,
        parts: Sequence[Part] = (),
        compute_on: Callable[[tuple[int, ...]], None] | None = None,
    ) -> None:
        super().__init__()
        self.runner = runner
        self.counters = DraftCounters()
        self._stage = stage or LocalStage(runner)
        self._assist = assist
        self._early_stop = early_stop
        self._parts = (*parts, *(part for part in (assist, early_stop) if part is not None))
        self._drafts = OpenDrafts(
            runner,
            send,
            self.counters,
            self._parts,
            max_sequences,
            compute_on if self._stage.movable else None,
        )
        self._room = Room(runner.pool, share=all(part.shareable for part in self._parts))
        self._under_way = 0
        self._passes = 0
        self._has_spare_work = True

    # ---- from any thread -------------------------------------------------------------------

    @property
    def num_open(self) -> int:
        return len(self._drafts)

    def obey(self, connection: int, commands: list[Command]) -> None:
        """Commands of one verifier, in order."""
        self.post(lambda: self._obey(connection, commands))

    def disconnect(self, connection: int) -> None:
        """A verifier is gone: frees what was open for it."""
        self.post(lambda: self._drafts.disconnect(connection))

    # ---- the engine's thread ---------------------------------------------------------------

    def drop_all(self, reason: str) -> None:
        """Gives up every sequence; its verifier may open it again."""
        self._drafts.refuse(list(self._drafts.values()), reason)

    def close(self) -> None:
        """Frees all that is still open."""
        for draft in list(self._drafts.values()):
            self._drafts.drop(draft)

    def step(self) -> bool:
        """One step: obey, advance the sequences that have room, propose."""
        self._read_inbox()
        ready = self._ready() if self._under_way < self._stage.depth else []
        if not ready:
            return self._spare()
        started = time.perf_counter()
        work = self._plan(ready)
        self._passes += 1
        for draft in ready:
            draft.in_flight, draft.last_pass = True, self._passes
        self._under_way += 1
        try:
            self._stage.submit(work, partial(self._passed, started))
        except Exception as failure:
            log.exception("a drafting step failed")
            self._under_way -= 1
            self._drafts.refuse(ready, f"the drafter's forward pass failed: {failure}")
        return True

    def _obey(self, connection: int, commands: Sequence[Command]) -> None:
        for command in commands:
            self._drafts.obey(connection, command)

    def _spare(self) -> bool:
        """No sequence has room. Where verifiers compute elsewhere, one part may do something."""
        if not self._has_spare_work or self._under_way or self._drafts.any_in_turn:
            return False
        try:
            return any(part.idle() for part in self._parts)
        except Exception:
            log.exception("spare work failed; drafting goes on without")
            self._has_spare_work = False
            return False

    # ---- before a pass ---------------------------------------------------------------------

    def _ready(self) -> list[Draft]:
        """Sequences that have room for a draft; of those that have yet to prefill, the oldest.

        Where several passes may be under way, a share of them, those first that waited longest:
        if all went into one pass, they would come back together and go on as one for ever.
        """
        wanting = [d for d in self._drafts.values() if d.room and not d.in_flight and not d.loading]
        # So that those who have begun can go on for a while.
        spare = sum(d.sequence.table is not None for d in self._drafts.values())
        able = [d for d in wanting if self._has_memory(d, spare)]
        # One may have had to make room for another.
        able = [d for d in able if d.key in self._drafts]
        prompts = [d for d in able if d.sequence.todo > d.window + 1]
        ready = [d for d in able if d.sequence.todo <= d.window + 1] + prompts[:1]
        depth = self._stage.depth
        if depth < 2:
            return ready
        flying = sum(d.in_flight for d in self._drafts.values())
        share = -(-(len(ready) + flying) // depth)
        return sorted(ready, key=lambda d: d.last_pass)[:share]

    def _has_memory(self, draft: Draft, spare: int) -> bool:
        """Whether the sequence has its room in the pool; takes what it lacks.

        One that has begun goes on, if need be at the expense of the one least recently used: where
        all have begun and none can go on, waiting would not end. One that has not begun waits.
        """
        while draft.key in self._drafts:
            if self._room.reserve(draft, spare=spare):
                return True
            victim = self._room.last_used(self._drafts.values())
            if draft.sequence.table is None or victim is None:
                return False
            self._drafts.refuse([victim], "the drafter's KV pool is full; others need its room")
        return False

    def _plan(self, ready: list[Draft]) -> list[Work]:
        """The rows of a pass: what each sequence has yet to compute, and guesses behind it."""
        plain = [_rows(draft) for draft in ready]
        guesses: list[tuple[int, ...]] = [()] * len(ready)
        if self._assist is not None:
            guesses = self._assist.choose(ready, sum(len(s.tokens) for s in plain))
        return [
            self._work(draft, segment, more)
            for draft, segment, more in zip(ready, plain, guesses, strict=True)
        ]

    def _work(self, draft: Draft, segment: Segment, guesses: tuple[int, ...]) -> Work:
        start = draft.sequence.chain.at(len(draft.sequence))
        if guesses:
            self.counters.guessed_tokens += len(guesses)
            tokens = (*segment.tokens, *guesses)
            segment = replace(segment, tokens=tokens, num_logits=1 + len(guesses))
        stop, in_turn = self._early_stop, self._drafts.in_turn(draft.key.connection)
        rate = stop is not None and stop.applies(shared=in_turn)
        return Work(draft, segment, start, guesses, rate)

    # ---- after a pass ----------------------------------------------------------------------

    def _passed(self, started: float, work: Sequence[Work], drawn: Sequence[Drawn]) -> None:
        """A pass came back: takes over what it drew, and proposes it."""
        self._under_way -= 1
        seconds = time.perf_counter() - started
        self.counters.passed(work, seconds)
        for part in self._parts:
            part.passed(work, drawn, seconds)
        advanced: list[Draft] = []
        for item, result in zip(work, drawn, strict=True):
            draft = item.draft
            draft.in_flight = False
            if self._drafts.get(draft.key) is not draft:
                continue
            if result.error:
                log.warning("sequence %s failed: %s", draft.key, result.error)
                self._drafts.refuse([draft], result.error)
                continue
            self._take(item, result)
            self._room.publish(draft)
            for part in self._parts:
                part.landed(draft)
            advanced.append(draft)
        self._drafts.propose(advanced)

    def _take(self, item: Work, result: Drawn) -> None:
        """Appends what was drawn, unless a commit changed the sequence while the pass ran."""
        sequence, start = item.draft.sequence, item.start
        if not sequence.chain.names(start):
            return
        computed = item.segment.kv_length - len(item.guesses)
        sequence.computed = max(sequence.computed, computed)
        if len(sequence) == start.length and result.tokens:
            self.counters.right_guesses += len(result.tokens) - 1
            for token in result.tokens[: item.draft.room]:
                sequence.append(token)
                self.counters.drafted_tokens += 1
            # The rows of guesses that were drawn are computed, too.
            sequence.computed = len(sequence) - 1
            if self._early_stop is not None and self._early_stop.doubts(item.draft, result):
                item.draft.doubtful = True
                self.counters.early_stops += 1


def _rows(draft: Draft) -> Segment:
    """What a sequence has yet to compute, or the first piece of it."""
    sequence = draft.sequence
    assert sequence.table is not None
    end = min(sequence.computed + _PREFILL_CHUNK, len(sequence))
    tokens = sequence.tokens[sequence.computed : end]
    return Segment(tokens, sequence.computed, sequence.table, int(end == len(sequence)))
