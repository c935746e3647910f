"""What speculation did for a request: summed over its continuations, in vLLM's shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gateway.continuation import Piece
from slipstream.wire.proto import types_pb2


@dataclass(slots=True)
class Totals:
    """Counts of one request; `add` takes the last piece of each continuation.

    Args:
        prompt_tokens: of all prompts.
        n: continuations of each prompt.

    Attributes:
        session: what became of it as a session's turn, in JSON's shape; None where it was none.
    """

    prompt_tokens: int
    n: int = 1
    completion_tokens: int = 0
    complete: bool = True
    stats: list[types_pb2.SpeculationStats] = field(default_factory=list)
    session: dict[str, Any] | None = None
    _cached: dict[int, int] = field(default_factory=dict)

    def add(self, piece: Piece) -> None:
        self.completion_tokens += piece.completion_tokens
        # The least of a prompt's continuations: what the others found, the first may have computed.
        prompt = piece.index // self.n
        before = self._cached.get(prompt, piece.cached_tokens)
        self._cached[prompt] = min(before, piece.cached_tokens)
        if piece.stats is None:
            self.complete = False
        else:
            self.stats.append(piece.stats)
        state = piece.session
        if state is not None:
            self.session = {
                "id": state.id,
                "turns": state.turns,
                "stored": state.stored,
                "detail": state.detail,
            }

    def usage(self) -> dict[str, Any]:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }

    def metrics(self) -> dict[str, Any]:
        """vLLM's block. Ratios are null where nothing was drafted, and the block itself where the
        verifier did not tell: a stop string ends its stream before it can.

        mean_acceptance_length = (accepted + steps) / steps: each verification step gives its
        accepted drafts and one token of the verifier's own. Beside vLLM's fields: how many drafts
        these were, and which of them were n-gram guesses and not the drafter's.
        """
        if not self.complete:
            return {"speculative_decoding": None}
        steps = sum(stats.num_spec_steps for stats in self.stats)
        drafted = sum(stats.num_draft_tokens for stats in self.stats)
        accepted = sum(stats.num_accepted_tokens for stats in self.stats)
        return {
            "speculative_decoding": {
                "mean_acceptance_length": (accepted + steps) / steps if steps else None,
                "draft_acceptance_rate": accepted / drafted if drafted else None,
                "acceptance_histogram": self._histogram(),
                "num_spec_steps": steps,
                "num_draft_tokens": drafted,
                "num_accepted_tokens": accepted,
                "num_guess_tokens": sum(stats.num_guess_tokens for stats in self.stats),
                "num_accepted_guess_tokens": sum(
                    stats.num_accepted_guess_tokens for stats in self.stats
                ),
            }
        }

    def _histogram(self) -> list[int]:
        width = max((len(stats.acceptance_histogram) for stats in self.stats), default=0)
        histogram = [0] * width
        for stats in self.stats:
            for accepted, steps in enumerate(stats.acceptance_histogram):
                histogram[accepted] += steps
        return histogram
