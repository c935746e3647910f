"""What verifier and drafter say to each other, as values. The wire codec mirrors these."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.core.params import SamplingParams
from slipstream.core.prefix import Prefix


@dataclass(frozen=True, slots=True)
class Open:
    """A sequence to draft for: `tokens` so far, of which the first `num_prompt` are the prompt.

    `cache_salt` is part of the names of its prefixes (`slipstream.core.prefix.salted`).
    """

    sequence_id: int
    tokens: tuple[int, ...]
    num_prompt: int
    params: SamplingParams
    window: int
    max_length: int
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Commit:
    """The verifier decided `tokens` after `prefix`."""

    sequence_id: int
    prefix: Prefix
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Close:
    sequence_id: int


@dataclass(frozen=True, slots=True)
class SetWindow:
    """From now on `window` drafts may be ahead of the last commit; 0 wants none."""

    sequence_id: int
    window: int


@dataclass(frozen=True, slots=True)
class SetPace:
    """How the drafter runs for this verifier from now on.

    Attributes:
        cores: to compute on; empty means all that it has.
        burst: a run of drafts is proposed when it pauses, not token by token.
    """

    cores: tuple[int, ...]
    burst: bool


# What concerns one sequence, and everything that a verifier may ask for.
SequenceCommand = Open | Commit | Close | SetWindow
Command = SequenceCommand | SetPace


@dataclass(frozen=True, slots=True)
class Proposal:
    """Draft tokens that continue `prefix`, a chain.

    Attributes:
        paused: no more will follow before the next commit; `tokens` may then be empty.
        committed: how many tokens the drafter knew to be decided. Where the verifier has decided
            more, its commit was on the way, and a pause is over.
    """

    sequence_id: int
    prefix: Prefix
    tokens: tuple[int, ...]
    paused: bool = False
    committed: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """The drafter does not (or no longer) draft for a sequence."""

    sequence_id: int
    reason: str
