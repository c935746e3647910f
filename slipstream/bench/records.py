"""What the benchmark asks, measures and reports."""

from __future__ import annotations

from dataclasses import dataclass

EXACTNESS = ("auto", "fast", "strict")
TASKS = ("multi_turn", "translation", "summarization", "qa", "math_reasoning", "rag")


@dataclass(frozen=True, slots=True)
class Question:
    """The first turn of one entry of a question file. `task` is one of TASKS."""

    question_id: str
    task: str
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as token ids, the chat template applied."""

    question_id: str
    task: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Speculation:
    """Counts of one generation. `steps` are all forward passes, `spec_steps` those with drafts."""

    steps: int = 0
    spec_steps: int = 0
    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: Speculation) -> Speculation:
        return Speculation(
            self.steps + other.steps,
            self.spec_steps + other.spec_steps,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
        )


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation as its client saw it. Tokens end with the first end-of-sequence token.

    Attributes:
        seconds: end to end, prefill included.
        ttft_seconds: until the first token was there.
    """

    token_ids: tuple[int, ...]
    seconds: float
    ttft_seconds: float
    speculation: Speculation | None = None


@dataclass(frozen=True, slots=True)
class EngineCost:
    """What one generation moved in the verifier's counters, and its step times after it.

    Counted from the first token on: prefill is nearly all model and would hide the rest.

    Attributes:
        step_seconds, model_seconds: seconds in steps, and inside the model's forward pass.
        plain_step_seconds, draft_step_seconds: of one step, as the verifier reports them;
            0 where it has not seen one.
    """

    steps: int
    step_seconds: float
    model_seconds: float
    plain_step_seconds: float
    draft_step_seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One generation of one row in one repeat.

    Attributes:
        others_cpu_seconds: processor time that the processes of other rows burnt meanwhile;
            None where the system does not tell.
        at_once: how many generations ran side by side, this one among them.
        group_seconds: what all of those took; None for one alone.
    """

    row: str
    repeat: int
    question_id: str
    task: str
    generation: Generation
    engine: EngineCost | None = None
    others_cpu_seconds: float | None = None
    at_once: int = 1
    group_seconds: float | None = None

    @property
    def share_seconds(self) -> float:
        """Its part of the wall time: with k at once, a k-th."""
        if self.group_seconds is None:
            return self.generation.seconds
        return self.group_seconds / self.at_once
