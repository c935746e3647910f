"""The verdict on one sequence of a step: the rule's own tokens, until a draft differs."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.core.sampling import log_probabilities
from slipstream.engine.draws import Draws
from verifier_service.generation import CommittedToken, Generation
from verifier_service.plan import Work


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a step committed of a sequence; of its drafts, the first `accepted` were right."""

    tokens: tuple[CommittedToken, ...]
    accepted: int


def decide(work: Work, draws: Draws, row: int) -> Verdict:
    """Commits what the rule draws from the rows of a sequence, the first of which is `row`.

    Row i holds the logits after draft i - 1. Each is looked at only if every draft before it
    was what the rule itself draws, so penalties see the true history, and nothing is
    committed after a token that ends the generation.

    Raises:
        InternalError: the model produced no finite logits; the generation cannot go on.
    """
    generation, drafts = work.generation, work.drafts
    committed: list[CommittedToken] = []
    accepted = 0
    for i in range(len(drafts) + 1):
        token = draws.token(row + i, generation.sequence)
        committed.append(_with_logprobs(generation, draws, row + i, token))
        generation.append(token)
        matches = i < len(drafts) and drafts[i] == token
        accepted += matches
        if generation.finish or not matches:
            break
    generation.sequence.computed = len(generation.sequence) - 1
    generation.settle(len(committed))
    generation.counts.record(len(drafts), accepted, generation.drafted)
    return Verdict(tuple(committed), accepted)


def _with_logprobs(generation: Generation, draws: Draws, row: int, token: int) -> CommittedToken:
    if generation.request.logprobs is None:
        return CommittedToken(token)
    logprob, top = log_probabilities(draws.row(row), token, generation.request.logprobs)
    return CommittedToken(token, logprob, tuple(top))
