"""What verifier and drafter say to each other, as values. The wire codec mirrors these."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.core.params import SamplingParams
from slipstream.core.prefix import Prefix


@dataclass(frozen=True, slots=True)
class Open:
    """A sequence to draft for: `tokens` so far, of which the first `num_prompt` are the prompt."""

    sequence_id: int
    tokens: tuple[int, ...]
    num_prompt: int
    params: SamplingParams
    window: int
    max_length: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The verifier decided `tokens` after `prefix`."""

    sequence_id: int
    prefix: Prefix
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Close:
    sequence_id: int


Command = Open | Commit | Close


@dataclass(frozen=True, slots=True)
class Proposal:
    """Draft tokens that continue `prefix`, a chain."""

    sequence_id: int
    prefix: Prefix
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The drafter does not (or no longer) draft for a sequence."""

    sequence_id: int
    reason: str
