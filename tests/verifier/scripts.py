"""Drafts of every sort, right and wrong, as a drafter in any state of confusion would send them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from slipstream.core.draft import Proposal
from slipstream.core.prefix import Prefix
from tests.verifier.rig import VOCAB, Outcome, Rig

KINDS = (
    *("nothing", "empty", "right", "wrong", "half", "late_mismatch", "pieces", "reversed_pieces"),
    *("twice", "stale", "overlap", "overlap_wrong", "forged", "gap", "other_sequence"),
    *("beyond_vocabulary", "endless"),
)


@dataclass(frozen=True, slots=True)
class Draft:
    """One delivery: a kind of draft of about `size` tokens that arrives `delay` steps late."""

    kind: str
    size: int
    delay: int


def _wrong(token: int) -> int:
    return (token + 1) % VOCAB


def proposals(
    rig: Rig, number: int, truth: Sequence[int], done: int, draft: Draft
) -> list[Proposal]:
    """What `draft` stands for, where `done` tokens of `truth` are committed.

    Args:
        truth: the right sequence, prompt included, and whatever tokens after its end.
    """
    size, kind = draft.size, draft.kind

    def say(start: int, tokens: Sequence[int], history: Sequence[int] = truth) -> Proposal:
        return Proposal(number, rig.chain(history[:start]).at(start), tuple(tokens))

    right = list(truth[done : done + size])
    if kind == "nothing":
        return []
    if kind == "empty":
        return [say(done, [])]
    if kind == "wrong":
        return [say(done, [_wrong(t) for t in right])]
    if kind == "half":
        return [say(done, [t if i % 2 == 0 else _wrong(t) for i, t in enumerate(right)])]
    if kind == "late_mismatch":
        return [say(done, [*right[:-1], *(_wrong(t) for t in right[-1:])])]
    if kind in {"pieces", "reversed_pieces"}:
        each = [say(done + i, [token]) for i, token in enumerate(right)]
        return each if kind == "pieces" else each[::-1]
    if kind == "twice":
        return [say(done, right)] * 2
    if kind == "stale":
        # Continues a history that was never committed.
        history = [*truth[: done - 1], _wrong(truth[done - 1])]
        return [say(done, right, history)]
    if kind in {"overlap", "overlap_wrong"}:
        start = max(0, done - size)
        tokens = list(truth[start : done + size])
        if kind == "overlap_wrong":
            tokens[0] = _wrong(tokens[0])
        return [say(start, tokens)]
    if kind == "forged":
        return [Proposal(number, Prefix(done, bytes(16)), tuple(_wrong(t) for t in right))]
    if kind == "gap":
        return [say(done + 2, truth[done + 2 : done + 2 + size])]
    if kind == "other_sequence":
        return [Proposal(number + 1000, rig.chain(truth[:done]).at(done), tuple(right))]
    if kind == "beyond_vocabulary":
        return [say(done, [*right[: size // 2], VOCAB, 2**32 - 1])]
    if kind == "endless":
        return [say(done, [*truth[done:], *range(64)])]
    return [say(done, right)]


@dataclass(slots=True)
class Proposer:
    """Goes through a script, one draft a step, again and again, for one generation."""

    rig: Rig
    number: int
    outcome: Outcome
    truth: list[int]
    script: Sequence[Draft]
    _step: int = 0
    _due: dict[int, list[Proposal]] = field(default_factory=dict)

    def __call__(self) -> None:
        done = len(self.outcome.prompt) + len(self.outcome.tokens)
        draft = self.script[self._step % len(self.script)]
        if not self.outcome.ended:
            made = proposals(self.rig, self.number, self.truth, done, draft)
            self._due.setdefault(self._step + draft.delay, []).extend(made)
        self.rig.propose(*self._due.pop(self._step, []))
        self._step += 1
