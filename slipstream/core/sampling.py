"""The sampling rule: which token follows, given logits, parameters, history and position.

Both services call `sample`; nothing else in the system chooses a token. The Gumbel-max trick
(Maddison, Tarlow and Minka, NeurIPS 2014) turns a categorical draw into an argmax of
`logit + noise`, so a draw is a pure function and two models with similar logits draw alike.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from slipstream.core.noise import MAX_GUMBEL, MIN_GUMBEL, gumbel
from slipstream.core.params import SamplingParams

Logits = NDArray[np.float32]


class TokenCounts:
    """How often each token occurs in one sequence, for penalties. One owner."""

    __slots__ = ("output", "prompt")

    def __init__(self, prompt: Iterable[int], output: Iterable[int] = ()) -> None:
        self.prompt = frozenset(prompt)
        self.output: dict[int, int] = {}
        for token in output:
            self.add(token)

    def add(self, token: int) -> None:
        self.output[token] = self.output.get(token, 0) + 1

    def remove(self, token: int) -> None:
        left = self.output[token] - 1
        if left:
            self.output[token] = left
        else:
            del self.output[token]


def _penalize(scores: NDArray[np.float64], params: SamplingParams, counts: TokenCounts) -> None:
    """Applies bias and penalties to `scores` [vocab] in place, in the field's order."""
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    if not params.has_penalties:
        return
    if params.repetition_penalty != 1.0:
        seen = np.fromiter(counts.prompt | counts.output.keys(), np.int64)
        values = scores[seen]
        penalty = params.repetition_penalty
        scores[seen] = np.where(values > 0, values / penalty, values * penalty)
    if counts.output:
        tokens = np.fromiter(counts.output.keys(), np.int64)
        times = np.fromiter(counts.output.values(), np.int64)
        scores[tokens] -= params.frequency_penalty * times + params.presence_penalty


def _nucleus(
    scores: NDArray[np.float64], tokens: NDArray[np.int64], top_p: float
) -> NDArray[np.int64]:
    """The fewest most likely of `tokens` whose probabilities reach `top_p`; ties by token id."""
    weights = np.exp(scores[tokens] - scores[tokens].max())
    target = top_p * weights.sum()
    # Sorting the whole vocabulary is the cost of top-p: sort a growing head of it instead.
    size = min(256, tokens.size)
    while True:
        head = (
            np.arange(tokens.size)
            if size == tokens.size
            else np.flatnonzero(weights >= np.partition(weights, -size)[-size])
        )
        if size == tokens.size or weights[head].sum() >= target:
            order = head[np.argsort(-scores[tokens[head]], kind="stable")]
            before = np.cumsum(weights[order]) - weights[order]
            kept: NDArray[np.int64] = tokens[order[before < target]]
            return kept
        size = min(size * 8, tokens.size)


def survivors(scores: NDArray[np.float64], params: SamplingParams) -> NDArray[np.int64]:
    """Token ids that pass top-k, then top-p over what is left, then min-p; shape [m], m >= 1.

    Args:
        scores: logits over temperature, after bias and penalties, [vocab].
    """
    best = scores.max()
    # No noise can lift a token from further below than this: dropping it changes nothing.
    floor = best - (MAX_GUMBEL - MIN_GUMBEL)
    if 0 < params.top_k < scores.size:
        floor = max(floor, np.partition(scores, -params.top_k)[-params.top_k])
    tokens = np.flatnonzero(scores >= floor)
    if params.top_p < 1.0:
        tokens = _nucleus(scores, tokens, params.top_p)
    if params.min_p > 0.0:
        tokens = tokens[scores[tokens] >= best + np.log(params.min_p)]
    return tokens


def sample(logits: Logits, params: SamplingParams, counts: TokenCounts, position: int) -> int:
    """The token at `position` of a sequence.

    Args:
        logits: float32, [vocab], of the model given the first `position` tokens.
        params: what the request asked for.
        counts: of the first `position` tokens.
        position: index of the token in the sequence, prompt included. Keys the noise.
    """
    if params.plain_argmax:
        return int(logits.argmax())
    scores = logits.astype(np.float64)
    _penalize(scores, params, counts)
    if params.greedy:
        return int(scores.argmax())
    scores /= params.temperature
    tokens = survivors(scores, params)
    drawn = scores[tokens] + gumbel(params.seed, position, tokens)
    return int(tokens[drawn.argmax()])


def log_probabilities(
    logits: Logits, token: int, top: int
) -> tuple[float, list[tuple[int, float]]]:
    """Log probability of `token` under the raw logits [vocab], and the `top` most likely."""
    scores = logits.astype(np.float64)
    best = scores.max()
    scores -= best + np.log(np.exp(scores - best).sum())
    if top == 0:
        return float(scores[token]), []
    head = np.argpartition(-scores, top - 1)[:top] if top < scores.size else np.arange(scores.size)
    head = head[np.lexsort((head, -scores[head]))]
    return float(scores[token]), [(int(i), float(scores[i])) for i in head]
