"""What a fake verifier is told to do: its tokens, how they come, and how it comes to grief."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from slipstream.core.errors import SlipstreamError
from slipstream.core.params import SamplingParams
from slipstream.wire.proto import types_pb2, verifier_pb2

TokenFunction = Callable[[Sequence[int], SamplingParams, int], int]
Break = Literal["unavailable", "internal", "cancelled", "end", "finish"]


@dataclass(frozen=True, slots=True)
class FakeBehaviour:
    """How the fake answers. All times in seconds, and all places in tokens of the generation, those
    that were committed before included.

    Attributes:
        tokens: a fixed script, after whose end the generation stops; or a function of the prompt,
            the parameters and the number of tokens generated so far, that gives the next token.
        chunks: how many tokens each message carries, in turn, and again from the start. Borders lie
            where they would in a generation from its beginning.
        first_delay: before the first message.
        delay: before every message.
        error: raised instead of the message that would carry token number `error_after`.
        hang_after: sends nothing from this token number on, until the call is cancelled.
        dies_after: instead of the message that would carry token number `dies_after`, all calls are
            cut and the port is closed, as where the process is killed. Until `start`.
        breaks: a stream breaks instead of the message that would carry this token number, once for
            each request: with a status that is of no error of ours, as of a broken connection, or
            without a last word ("end"), or with the finish reason CANCELLED ("finish").
        beat: instead of nothing, a message without tokens every so many seconds; 0 for none.
        speculative: the server's default for requests that leave it open.
        cached: of a prompt's tokens, those that it says it had already.
        tells_stats: whether every message says what speculation did so far, as a real verifier's
            does; else only the last one.
        keeps_deadlines: whether it ends what is past its deadline, as a verifier should.
    """

    tokens: Sequence[int] | TokenFunction
    chunks: Sequence[int] = (1,)
    first_delay: float = 0.0
    delay: float = 0.0
    error: SlipstreamError | None = None
    error_after: int = 0
    hang_after: int | None = None
    dies_after: int | None = None
    breaks: Mapping[int, Break] = field(default_factory=dict)
    beat: float = 0.0
    speculative: bool = True
    cached: int = 0
    tells_stats: bool = False
    keeps_deadlines: bool = True


def borders(chunks: Sequence[int], start: int) -> Iterator[int]:
    """Where messages end that begin at `start` or behind it."""
    for border in itertools.accumulate(itertools.cycle(chunks)):
        if border > start:
            yield border


def token_of(token: int, request: verifier_pb2.GenerateRequest) -> types_pb2.Token:
    """With made-up log probabilities, the most likely first, where they are asked for."""
    if not request.HasField("logprobs"):
        return types_pb2.Token(id=token)
    top = [
        types_pb2.TopLogprob(token_id=token + rank, logprob=-0.5 - rank)
        for rank in range(request.logprobs)
    ]
    return types_pb2.Token(id=token, logprob=-0.5, top_logprobs=top)


def count_step(stats: types_pb2.SpeculationStats, size: int) -> None:
    """A message of k tokens is a step that accepted k - 1 drafts of k - 1."""
    stats.num_steps += 1
    accepted = size - 1
    if accepted <= 0:
        return
    stats.num_spec_steps += 1
    stats.num_draft_tokens += accepted
    stats.num_accepted_tokens += accepted
    histogram = list(stats.acceptance_histogram)
    histogram += [0] * (accepted + 1 - len(histogram))
    histogram[accepted] += 1
    stats.ClearField("acceptance_histogram")
    stats.acceptance_histogram.extend(histogram)
