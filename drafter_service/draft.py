"""One open sequence on the drafter."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slipstream.core.draft import Commit, Open, Proposal
from slipstream.core.prefix import Prefix, salted
from slipstream.core.runs import agreement
from slipstream.engine.batch import Segment
from slipstream.engine.sequence import Sequence

if TYPE_CHECKING:
    from drafter_service.stage import Drawn


@dataclass(frozen=True, slots=True)
class Key:
    """A sequence of one of the verifiers, by the number of its connection."""

    connection: int
    sequence_id: int


class Draft:
    """An open sequence: what was committed, and how far the drafter has run ahead of it.

    Attributes:
        committed: tokens that the verifier has decided, as far as heard.
        proposed: tokens that were decided or proposed; what lies beyond is yet to be told.
        window: how many drafts may be ahead of the last commit.
        in_flight: its rows are in a forward pass that has not come back.
        last_pass: number of the pass that its rows were last in.
        loading: its context is on its way from the verifier; it is not computed meanwhile.
        own_context: all of its context is computed here. The verifier's is another: it is of more
            layers, and not to be taken for it.
        doubtful: what would come next is too unlikely to be worth a draft before the verifier has
            decided on those that there are.
        told: the verifier knows that nothing follows before its next commit.
        agreed: how many drafts the last commit took.
    """

    def __init__(self, key: Key, command: Open, fingerprint: str) -> None:
        self.key = key
        self.cache_salt = command.cache_salt
        salt = salted(fingerprint, command.cache_salt)
        self.sequence = Sequence(command.tokens, command.num_prompt, command.params, salt)
        self.committed = self.proposed = len(command.tokens)
        self.window = command.window
        self.max_length = command.max_length
        self.in_flight = False
        self.last_pass = 0
        self.loading = False
        self.own_context = True
        self.doubtful = False
        self.told = False
        self.agreed = 0

    @property
    def room(self) -> int:
        """How many more drafts are wanted. The token at max_length - 1 is the verifier's own."""
        if self.doubtful:
            return 0
        most = min(self.committed + self.window, self.max_length - 1)
        return max(0, most - len(self.sequence))

    def commit(self, command: Commit) -> int | None:
        """Takes over what the verifier decided; drafts that agree stay.

        Returns:
            How many drafts were rolled back; None where the commit continues another prefix.
        """
        sequence, start = self.sequence, command.prefix.length
        if start != self.committed or not sequence.chain.names(command.prefix):
            return None
        ahead = sequence.tokens[start:]
        agree = agreement(ahead, command.tokens)
        lost = 0
        if agree < len(command.tokens):
            lost = len(ahead) - agree
            sequence.rollback(start + agree)
            self.proposed = min(self.proposed, len(sequence))
            for token in command.tokens[agree:]:
                sequence.append(token)
        self.committed = start + len(command.tokens)
        self.proposed = max(self.proposed, self.committed)
        self.agreed, self.told = agree, False
        self.doubtful = self.doubtful and self.committed < len(sequence)
        return lost

    def proposal(self, *, only_whole_runs: bool) -> Proposal | None:
        """What is yet to be told of the sequence; None where there is nothing, or it waits.

        Args:
            only_whole_runs: drafts wait until no more of them are wanted.
        """
        paused = not self.room
        new = self.proposed < len(self.sequence) and (paused or not only_whole_runs)
        if not new and (self.told or not paused):
            return None
        self.told = paused
        prefix = self.sequence.chain.at(self.proposed)
        tokens = tuple(self.sequence.tokens[self.proposed :])
        self.proposed = len(self.sequence)
        return Proposal(self.key.sequence_id, prefix, tokens, paused, self.committed)


@dataclass(frozen=True, slots=True)
class Work:
    """A sequence's rows in one forward pass.

    Attributes:
        start: names the sequence when the pass began.
        guesses: the last tokens of the segment, which are not the drafter's own: they are kept as
            far as it draws the same.
        rate: whether the confidence of what is drawn is asked for.
    """

    draft: Draft
    segment: Segment
    start: Prefix
    guesses: tuple[int, ...] = ()
    rate: bool = False


class Part:
    """Something of the drafter that follows its sequences; all calls on the engine's thread.

    Attributes:
        shareable: whether keys and values depend on the tokens alone and are there in all of the
            model, as far as it is up to this part: a sequence may then begin with another's.
    """

    shareable = True

    def idle(self) -> bool:
        """Nobody waits for a draft. May compute one short pass; whether it did."""
        return False

    def opened(self, draft: Draft) -> None:
        """A sequence was opened; nothing of it is computed yet."""

    def committed(self, draft: Draft, command: Commit, lost: int) -> None:
        """The verifier decided tokens, `lost` drafts of the sequence were rolled back."""

    def passed(self, work: Seq[Work], drawn: Seq[Drawn], seconds: float) -> None:
        """A pass came back after `seconds`; what it drew was not yet taken over.

        Some of its sequences may have been closed meanwhile.
        """

    def landed(self, draft: Draft) -> None:
        """A pass of the sequence came back and was taken over; the next did not begin."""

    def closed(self, draft: Draft) -> None:
        """A sequence is gone; called before its room in the pool is given back."""
