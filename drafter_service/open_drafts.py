"""The sequences that verifiers have open on the drafter, and what they command about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from drafter_service.counters import DraftCounters
from drafter_service.draft import Draft, Key, Part
from slipstream.core.draft import (
    Close,
    Command,
    Commit,
    Open,
    Proposal,
    Refusal,
    SetPace,
    SetWindow,
)
from slipstream.core.errors import InvalidParameter
from slipstream.engine.runner import ModelRunner

Send = Callable[[int, list[Proposal], list[Refusal]], None]


class OpenDrafts(Mapping[Key, Draft]):
    """In the order opened. Owned by the engine's thread.

    Args:
        send: takes a connection's number, proposals and refusals.
        parts: what else follows the sequences.
        most: how many sequences may be open.
        move: computes on other cores from now on; None where the passes stay where they are.
    """

    def __init__(
        self,
        runner: ModelRunner,
        send: Send,
        counters: DraftCounters,
        parts: Sequence[Part],
        most: int,
        move: Callable[[tuple[int, ...]], None] | None,
    ) -> None:
        self._runner = runner
        self._send = send
        self._counters = counters
        self._parts = parts
        self._most = most
        self._move = move
        self._drafts: dict[Key, Draft] = {}
        self._paces: dict[int, SetPace] = {}
        self._cores: tuple[int, ...] = ()

    def __getitem__(self, key: Key) -> Draft:
        return self._drafts[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._drafts)

    def __len__(self) -> int:
        return len(self._drafts)

    def in_turn(self, connection: int) -> bool:
        """Whether drafter and verifier take turns on one device."""
        pace = self._paces.get(connection)
        return pace is not None and pace.burst

    @property
    def any_in_turn(self) -> bool:
        return any(pace.burst for pace in self._paces.values())

    def propose(self, drafts: Sequence[Draft]) -> None:
        """Tells verifiers what they do not know yet of these sequences, each in one message."""
        proposals: dict[int, list[Proposal]] = {}
        for draft in drafts:
            proposal = draft.proposal(only_whole_runs=self.in_turn(draft.key.connection))
            if proposal is not None:
                proposals.setdefault(draft.key.connection, []).append(proposal)
        for connection, batch in proposals.items():
            self._send(connection, batch, [])

    def refuse(self, drafts: Sequence[Draft], reason: str) -> None:
        """Gives sequences up; their verifiers may open them again."""
        for draft in drafts:
            self.drop(draft)
            self._send(draft.key.connection, [], [Refusal(draft.key.sequence_id, reason)])

    def drop(self, draft: Draft) -> None:
        del self._drafts[draft.key]
        for part in self._parts:
            part.closed(draft)
        if draft.sequence.table is not None:
            self._runner.pool.release(draft.sequence.table)

    def disconnect(self, connection: int) -> None:
        """A verifier is gone: frees what was open for it."""
        self._paces.pop(connection, None)
        for draft in list(self.values()):
            if draft.key.connection == connection:
                self.drop(draft)

    # ---- commands --------------------------------------------------------------------------

    def obey(self, connection: int, command: Command) -> None:
        """A command about a sequence that is not open says nothing."""
        if isinstance(command, SetPace):
            self._set_pace(connection, command)
            return
        key = Key(connection, command.sequence_id)
        draft = self._drafts.get(key)
        if isinstance(command, Open):
            self._open(key, command)
        elif draft is None:
            return
        elif isinstance(command, Close):
            self.drop(draft)
        elif isinstance(command, SetWindow):
            draft.window = command.window
        else:
            self._commit(draft, command)

    def _set_pace(self, connection: int, pace: SetPace) -> None:
        """Takes over a pace. Where verifiers disagree about cores, the last one has its way."""
        self._paces[connection] = pace
        if self._move is not None and pace.cores and pace.cores != self._cores:
            self._cores = pace.cores
            self._move(pace.cores)

    def _open(self, key: Key, command: Open) -> None:
        if key in self._drafts:
            self.drop(self._drafts[key])
        reason = self._unfit(command)
        if reason:
            self._send(key.connection, [], [Refusal(key.sequence_id, reason)])
            return
        draft = Draft(key, command, self._runner.loaded.fingerprint)
        self._drafts[key] = draft
        for part in self._parts:
            part.opened(draft)

    def _unfit(self, command: Open) -> str:
        """Why a sequence cannot be drafted for; empty where it can.

        A token that does not exist would fail the forward pass of all sequences at once.
        """
        pool, vocab = self._runner.pool, self._runner.loaded.config.vocab_size
        if len(self._drafts) >= self._most:
            return f"the drafter has {self._most} sequences open already"
        if pool.blocks_for(command.max_length) > pool.num_blocks:
            return f"{command.max_length} tokens never fit the drafter's KV pool"
        if max(command.tokens) >= vocab:
            return f"it holds token id {max(command.tokens)}; the vocabulary has {vocab} tokens"
        try:
            command.params.check_vocabulary(vocab)
        except InvalidParameter as failure:
            return failure.message
        return ""

    def _commit(self, draft: Draft, command: Commit) -> None:
        vocab = self._runner.loaded.config.vocab_size
        if any(token >= vocab for token in command.tokens):
            self.refuse([draft], "a commit holds a token beyond the vocabulary")
            return
        lost = draft.commit(command)
        if lost is None:
            self.refuse([draft], "a commit continues a prefix that is not here")
            return
        self._counters.rolled_back_tokens += lost
        for part in self._parts:
            part.committed(draft, command, lost)
        # Where no pass will follow, nobody else would say so.
        if draft.window and not draft.room and not draft.in_flight:
            self.propose([draft])
