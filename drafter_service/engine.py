"""The drafter's engine: runs ahead of every open sequence, and rolls back when contradicted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from slipstream.core.draft import Close, Command, Commit, Open, Proposal, Refusal
from slipstream.core.errors import InvalidParameter
from slipstream.engine.batch import Segment
from slipstream.engine.draws import Draws
from slipstream.engine.loop import EngineLoop
from slipstream.engine.runner import ModelRunner
from slipstream.engine.sequence import Sequence

log = logging.getLogger(__name__)
_PREFILL_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Key:
    """A sequence of one of the verifiers, by the number of its connection."""

    connection: int
    sequence_id: int


class Draft:
    """An open sequence: what was committed, and how far the drafter has run ahead of it."""

    def __init__(self, key: Key, command: Open, salt: str) -> None:
        self.key = key
        self.sequence = Sequence(command.tokens, command.num_prompt, command.params, salt)
        self.committed = len(command.tokens)
        self.window = command.window
        self.max_length = command.max_length

    @property
    def has_room(self) -> bool:
        """Whether another draft is wanted. The token at max_length - 1 is the verifier's own."""
        ahead = len(self.sequence) - self.committed
        return ahead < self.window and len(self.sequence) < self.max_length - 1

    def commit(self, command: Commit) -> int | None:
        """Takes over what the verifier decided; drafts that agree stay.

        Returns:
            How many drafts were rolled back; None where the commit continues another prefix.
        """
        sequence, start = self.sequence, command.prefix.length
        if start != self.committed or not sequence.chain.names(command.prefix):
            return None
        ahead = sequence.tokens[start:]
        agree = 0
        for mine, decided in zip(ahead, command.tokens, strict=False):
            if mine != decided:
                break
            agree += 1
        lost = 0
        if agree < len(command.tokens):
            lost = len(ahead) - agree
            sequence.rollback(start + agree)
            for token in command.tokens[agree:]:
                sequence.append(token)
        self.committed = start + len(command.tokens)
        return lost


@dataclass(slots=True)
class DraftCounters:
    """Totals since the start. Written by the engine's thread, read by anyone."""

    steps: int = 0
    step_seconds: float = 0.0
    drafted_tokens: int = 0
    rolled_back_tokens: int = 0
    # Moving average of steps that advance one sequence by one token.
    single_step_seconds: float = 0.0


class DrafterEngine(EngineLoop):
    """Drafts for all open sequences, on a thread of its own. Never waited for, never waits.

    Args:
        send: takes a connection's number, proposals and refusals, on the engine's thread.
    """

    def __init__(
        self,
        runner: ModelRunner,
        send: Callable[[int, list[Proposal], list[Refusal]], None],
        *,
        max_sequences: int = 128,
    ) -> None:
        super().__init__()
        self.runner = runner
        self.counters = DraftCounters()
        self._send = send
        self._max_sequences = max_sequences
        self._drafts: dict[Key, Draft] = {}

    # ---- from any thread -------------------------------------------------------------------

    @property
    def num_open(self) -> int:
        return len(self._drafts)

    def obey(self, connection: int, commands: list[Command]) -> None:
        """Commands of one verifier, in order."""
        self._post(lambda: self._execute(connection, commands))

    def disconnect(self, connection: int) -> None:
        """A verifier is gone: frees what was open for it."""
        self._post(lambda: self._drop_connection(connection))

    # ---- the engine's thread ---------------------------------------------------------------

    def close(self) -> None:
        """Frees all that is still open."""
        for key in list(self._drafts):
            self._drop(key)

    def step(self) -> bool:
        """One step: obey, advance the sequences that have room by one token, propose."""
        self._read_inbox()
        ready = self._ready()
        if not ready:
            return False
        started = time.perf_counter()
        segments = [self._segment(draft) for draft in ready]
        try:
            draws = Draws(self.runner.forward(segments))
        except Exception as failure:
            log.exception("a drafting step failed")
            self._refuse(ready, f"the drafter's forward pass failed: {failure}")
            return True
        self._extend(ready, segments, draws)
        self._count(segments, time.perf_counter() - started)
        return True

    def _ready(self) -> list[Draft]:
        """Sequences that have room for a draft; of those that have yet to prefill, the oldest."""
        ready = [d for d in self._drafts.values() if d.has_room and self._has_memory(d)]
        prompts = [d for d in ready if d.sequence.todo > d.window + 1]
        return [d for d in ready if d.sequence.todo <= d.window + 1] + prompts[:1]

    def _segment(self, draft: Draft) -> Segment:
        sequence = draft.sequence
        assert sequence.table is not None
        end = min(sequence.computed + _PREFILL_CHUNK, len(sequence))
        tokens = sequence.tokens[sequence.computed : end]
        return Segment(tokens, sequence.computed, sequence.table, int(end == len(sequence)))

    def _extend(self, ready: list[Draft], segments: list[Segment], draws: Draws) -> None:
        proposals: dict[int, list[Proposal]] = {}
        row = 0
        for draft, segment in zip(ready, segments, strict=True):
            sequence = draft.sequence
            sequence.computed = segment.kv_length
            if not segment.num_logits:
                continue
            try:
                token = draws.token(row, sequence)
            except Exception as failure:
                log.warning("sequence %s failed: %s", draft.key, failure)
                self._refuse([draft], f"the drafter could not draw a token: {failure}")
                continue
            finally:
                row += 1
            prefix = sequence.chain.at(len(sequence))
            sequence.append(token)
            self.counters.drafted_tokens += 1
            proposal = Proposal(draft.key.sequence_id, prefix, (token,))
            proposals.setdefault(draft.key.connection, []).append(proposal)
        for connection, batch in proposals.items():
            self._send(connection, batch, [])

    def _has_memory(self, draft: Draft) -> bool:
        """Whether the sequence has its place in the pool; takes one where there is room."""
        if draft.sequence.table is None:
            draft.sequence.table = self.runner.pool.allocate(draft.max_length)
        return draft.sequence.table is not None

    def _count(self, segments: list[Segment], seconds: float) -> None:
        counters = self.counters
        counters.steps += 1
        counters.step_seconds += seconds
        if len(segments) == 1 and len(segments[0].tokens) == 1:
            before = counters.single_step_seconds or seconds
            counters.single_step_seconds = 0.95 * before + 0.05 * seconds

    def _execute(self, connection: int, commands: list[Command]) -> None:
        for command in commands:
            key = Key(connection, command.sequence_id)
            if isinstance(command, Open):
                self._open(key, command)
            elif key in self._drafts and isinstance(command, Close):
                self._drop(key)
            elif key in self._drafts and isinstance(command, Commit):
                self._commit(self._drafts[key], command)

    def _commit(self, draft: Draft, command: Commit) -> None:
        vocab = self.runner.loaded.config.vocab_size
        if any(token >= vocab for token in command.tokens):
            self._refuse([draft], "a commit holds a token beyond the vocabulary")
            return
        lost = draft.commit(command)
        if lost is None:
            self._refuse([draft], "a commit continues a prefix that is not here")
        else:
            self.counters.rolled_back_tokens += lost

    def _open(self, key: Key, command: Open) -> None:
        if key in self._drafts:
            self._drop(key)
        reason = self._unfit(command)
        if reason:
            self._send(key.connection, [], [Refusal(key.sequence_id, reason)])
        else:
            self._drafts[key] = Draft(key, command, self.runner.loaded.fingerprint)

    def _unfit(self, command: Open) -> str:
        """Why a sequence cannot be drafted for; empty where it can.

        A token that does not exist would fail the forward pass of all sequences at once.
        """
        pool, vocab = self.runner.pool, self.runner.loaded.config.vocab_size
        if len(self._drafts) >= self._max_sequences:
            return f"the drafter has {self._max_sequences} sequences open already"
        if pool.blocks_for(command.max_length) > pool.num_blocks:
            return f"{command.max_length} tokens never fit the drafter's KV pool"
        if max(command.tokens) >= vocab:
            return f"it holds token id {max(command.tokens)}; the vocabulary has {vocab} tokens"
        try:
            command.params.check_vocabulary(vocab)
        except InvalidParameter as failure:
            return failure.message
        return ""

    def _refuse(self, drafts: list[Draft], reason: str) -> None:
        for draft in drafts:
            self._drop(draft.key)
            self._send(draft.key.connection, [], [Refusal(draft.key.sequence_id, reason)])

    def _drop(self, key: Key) -> None:
        draft = self._drafts.pop(key)
        if draft.sequence.table is not None:
            self.runner.pool.release(draft.sequence.table)

    def _drop_connection(self, connection: int) -> None:
        for key in [key for key in self._drafts if key.connection == connection]:
            self._drop(key)
