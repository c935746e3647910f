"""What the verifier's engine has done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from verifier_service.generation import Generation
from verifier_service.plan import Work


@dataclass(slots=True)
class EngineCounters:
    """Totals since the start. Written by the engine's thread, read by anyone."""

    steps: int = 0
    step_seconds: float = 0.0
    # Steps of one row, and nothing else.
    plain_steps: int = 0
    plain_step_seconds: float = 0.0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    # Of those two, n-gram guesses; the others came from the drafter.
    guess_tokens: int = 0
    accepted_guess_tokens: int = 0
    stale_draft_tokens: int = 0
    # Of prompts, the tokens that were looked for in the cache of prefixes, and those found there.
    looked_up_prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    # Sequences that gave their room back for a while; requests ended by their deadline, or because
    # no place came free in time; clients that did not read.
    preemptions: int = 0
    # Generations that went on behind tokens decided before.
    resumed: int = 0
    deadlines: int = 0
    given_up: int = 0
    cut_clients: int = 0
    # Prefixes whose keys and values came from other verifiers, seconds spent on that, and attempts
    # that failed, by reason.
    kv_imports: int = 0
    kv_imported_tokens: int = 0
    kv_imported_bytes: int = 0
    kv_import_seconds: float = 0.0
    kv_import_failures: Counter[str] = field(default_factory=Counter)
    # By position in the drafts of a step: verified there, and accepted.
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)

    def stepped(self, work: Sequence[Work], seconds: float) -> None:
        """A step took `seconds`."""
        self.steps += 1
        self.step_seconds += seconds
        if sum(len(item.segment.tokens) for item in work) == 1:
            self.plain_steps += 1
            self.plain_step_seconds += seconds

    def started(self, generation: Generation) -> None:
        """A request got its place."""
        self.prompt_tokens += generation.sequence.num_prompt
        self.resumed += bool(generation.request.committed)

    def prefilled(self, generation: Generation) -> None:
        """The prompt of a request is computed: its first token comes."""
        self.looked_up_prompt_tokens += generation.sequence.num_prompt
        self.cached_prompt_tokens += generation.cached

    def decided(self, tokens: int, drafted: int, accepted: int, by_drafter: int) -> None:
        """A sequence got `tokens` tokens; the first `by_drafter` of its drafts were the drafter's,
        the others guesses."""
        self.generated_tokens += tokens
        self.draft_tokens += drafted
        self.accepted_tokens += accepted
        self.guess_tokens += drafted - by_drafter
        self.accepted_guess_tokens += max(0, accepted - by_drafter)
        for counts, reached in (
            (self.drafted_by_position, drafted),
            (self.accepted_by_position, accepted),
        ):
            counts.extend([0] * (drafted - len(counts)))
            for position in range(reached):
                counts[position] += 1
