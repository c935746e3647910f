"""The sampling rule once more, written for reading: plain Python, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from slipstream.core.noise import gumbel
from slipstream.core.params import SamplingParams

# Closer than this to a filter's border, two ways to round may keep different tokens.
_BORDER = 1e-9


class Borderline(Exception):
    """A token lies so close to a filter's border that rounding decides."""


def penalized(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> list[float]:
    """Logits after bias, repetition, frequency and presence penalty, in this order."""
    scores = [float(x) for x in logits]
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    for token in set(prompt) | set(output):
        penalty = params.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(output):
        scores[token] -= params.frequency_penalty * list(output).count(token)
        scores[token] -= params.presence_penalty
    return scores


def probabilities(scores: Sequence[float], tokens: Sequence[int]) -> dict[int, float]:
    """Softmax over `tokens` alone."""
    best = max(scores[t] for t in tokens)
    weights = {t: math.exp(scores[t] - best) for t in tokens}
    total = math.fsum(weights.values())
    return {t: w / total for t, w in weights.items()}


def kept(scores: Sequence[float], params: SamplingParams) -> list[int]:
    """Tokens left by top-k, then top-p, then min-p. Raises Borderline."""
    order = sorted(range(len(scores)), key=lambda t: (-scores[t], t))
    if 0 < params.top_k < len(scores):
        worst = scores[order[params.top_k - 1]]
        order = [t for t in order if scores[t] >= worst]
    if params.top_p < 1.0:
        chances, mass, nucleus = probabilities(scores, order), 0.0, []
        for token in order:
            if abs(mass - params.top_p) < _BORDER:
                raise Borderline
            if mass < params.top_p:
                nucleus.append(token)
            mass += chances[token]
        order = nucleus
    if params.min_p > 0.0:
        ratios = {t: math.exp(scores[t] - max(scores)) for t in order}
        if any(abs(r - params.min_p) < _BORDER * params.min_p and r < 1.0 for r in ratios.values()):
            raise Borderline
        order = [t for t in order if ratios[t] >= params.min_p]
    return sorted(order)


def slow_sample(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    position: int,
) -> int:
    """The token of the rule. Raises Borderline."""
    scores = penalized(logits, params, prompt, output)
    if params.temperature == 0.0:
        return max(range(len(scores)), key=lambda t: (scores[t], -t))
    scores = [s / params.temperature for s in scores]
    tokens = kept(scores, params)
    noise = gumbel(params.seed, position, np.array(tokens))
    return max(zip(tokens, noise, strict=True), key=lambda pair: scores[pair[0]] + pair[1])[0]
