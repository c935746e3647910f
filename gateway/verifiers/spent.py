"""What all calls of one continuation did together, told in the messages of the latest."""

from __future__ import annotations

from collections.abc import Sequence

from slipstream.wire.proto import types_pb2, verifier_pb2

_COUNTS = (
    "num_spec_steps",
    "num_steps",
    "num_draft_tokens",
    "num_accepted_tokens",
    "num_guess_tokens",
    "num_accepted_guess_tokens",
    "num_guess_steps",
)


class Spent:
    """Sums of one continuation. A verifier tells only of its own call, each time so far.

    Args:
        messages: those that are known, which `told` made already, maybe at another gateway.
    """

    def __init__(self, messages: Sequence[verifier_pb2.GenerateResponse] = ()) -> None:
        self._before = types_pb2.SpeculationStats()
        self._now = types_pb2.SpeculationStats()
        # Of the prompt, what the first call found: the later ones find what that one computed.
        self._cached = messages[0].cached_prompt_tokens if messages else None
        for message in reversed(messages):
            if message.HasField("stats"):
                self._before.CopyFrom(message.stats)
                break

    def next_call(self) -> None:
        self._before.CopyFrom(_sum(self._before, self._now))
        self._now.Clear()

    def told(self, message: verifier_pb2.GenerateResponse) -> verifier_pb2.GenerateResponse:
        """The message, changed to speak of all calls."""
        if self._cached is None:
            self._cached = message.cached_prompt_tokens
        message.cached_prompt_tokens = self._cached
        if message.HasField("stats"):
            self._now.CopyFrom(message.stats)
            if self._before.num_steps:
                message.stats.CopyFrom(_sum(self._before, self._now))
        return message

    def last_word(self, finish: types_pb2.FinishReason, seed: int) -> verifier_pb2.GenerateResponse:
        """That of a verifier which was lost before it could say it."""
        return verifier_pb2.GenerateResponse(
            finish_reason=finish,
            stats=_sum(self._before, self._now),
            seed=seed,
            cached_prompt_tokens=self._cached or 0,
        )


def _sum(
    a: types_pb2.SpeculationStats, b: types_pb2.SpeculationStats
) -> types_pb2.SpeculationStats:
    total = types_pb2.SpeculationStats()
    for name in _COUNTS:
        setattr(total, name, getattr(a, name) + getattr(b, name))
    width = max(len(a.acceptance_histogram), len(b.acceptance_histogram))
    for accepted in range(width):
        total.acceptance_histogram.append(
            sum(
                s.acceptance_histogram[accepted]
                for s in (a, b)
                if accepted < len(s.acceptance_histogram)
            )
        )
    return total
