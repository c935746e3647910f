"""Whole sequences out of the speculative loop have the model's own joint distribution.

A five-token Markov chain stands for the model, so that the probability of every sequence is
known. The verifier's real engine runs it, a drafter with a bent copy of the chain proposes. Seeds
are fixed; with fresh ones a right system would fail a check with probability ALARM.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from slipstream.core.draft import Command, Commit, Open, Proposal, SetPace
from slipstream.core.params import SamplingParams, StopConditions
from slipstream.core.prefix import PrefixChain
from slipstream.core.sampling import Logits, TokenCounts, sample
from slipstream.engine import sequence as sequence_module
from slipstream.engine.batch import Segment
from slipstream.engine.draws import Draws
from slipstream.engine.kv_pool import KvPool
from slipstream.engine.sequence import Sequence
from verifier_service.admission import Bounds
from verifier_service.engine import VerifierEngine
from verifier_service.generation import GenerationRequest, Progress
from verifier_service.layouts import Drafter
from verifier_service.placement import Placement
from verifier_service.plan import Limits
from verifier_service.speculation import Speculation, SpeculationSettings

ELSEWHERE = Drafter("elsewhere", frozenset())

ALARM = 1e-7
VOCAB, LENGTH, COUNT = 5, 3, 6000
_RNG = np.random.default_rng(42)
CHAIN = _RNG.normal(0, 1.2, (VOCAB, VOCAB)).astype(np.float32)
BENT = (CHAIN + _RNG.normal(0, 0.6, CHAIN.shape)).astype(np.float32)


class MarkovRunner:
    """As much of a ModelRunner as the engine needs; the logits depend on the last token alone."""

    def __init__(self) -> None:
        self.loaded = SimpleNamespace(
            config=SimpleNamespace(vocab_size=VOCAB),
            context_length=64,
            fingerprint="chain",
            eos_token_ids=frozenset(),
            kv_layers=(0,),
        )
        self.pool = KvPool(
            num_layers=1,
            num_blocks=256,
            num_kv_heads=1,
            head_dim=1,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.model_seconds = 0.0

    def forward(self, segments: list[Segment]) -> torch.Tensor:
        rows = [t for s in segments for t in s.tokens[len(s.tokens) - s.num_logits :]]
        return torch.from_numpy(CHAIN[rows])


class Drafter:
    """Two drafts after every commit, by the rule, on the bent chain."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.params: dict[int, SamplingParams] = {}
        self.drafted: dict[tuple[int, int], int] = {}  # by (seed, position)
        self.commands: list[Command] = []

    def proposals(self) -> list[Proposal]:
        result = []
        for command in self.commands:
            if isinstance(command, SetPace):
                continue
            number = command.sequence_id
            if isinstance(command, Open):
                self.tokens[number] = list(command.tokens)
                self.params[number] = command.params
            elif isinstance(command, Commit):
                self.tokens[number] += command.tokens
            else:
                continue
            tokens, params = self.tokens[number], self.params[number]
            ahead = list(tokens)
            for _ in range(2):
                counts = TokenCounts(tokens[:1], ahead[1:])
                draft = sample(BENT[ahead[-1]], params, counts, len(ahead))
                self.drafted[params.seed, len(ahead)] = draft
                ahead.append(draft)
            prefix = PrefixChain("chain", tokens).at(len(tokens))
            result.append(Proposal(number, prefix, tuple(ahead[len(tokens) :])))
        self.commands = []
        return result


def sequences(drafter: Drafter, speculative: bool = True) -> tuple[list[tuple[int, ...]], float]:
    """COUNT generations of LENGTH tokens, seeds 0 to COUNT - 1, and the share of drafts taken."""
    done: dict[int, list[int]] = {seed: [] for seed in range(COUNT)}
    engine = VerifierEngine(
        MarkovRunner(),  # type: ignore[arg-type]
        Speculation(
            lambda _, commands: drafter.commands.extend(commands),
            SpeculationSettings(length=8, ngram="off"),
            {1: 0.001},
            Placement("separate", ELSEWHERE, lambda _: None),
        ),
        limits=Limits(decode_rows=1024),
        # However busy the machine is, none waits too long.
        bounds=Bounds(requests=2 * COUNT, seconds=math.inf),
    )
    engine.drafter_up(1, ELSEWHERE)
    for seed in range(COUNT):

        def listen(progress: Progress, seed: int = seed) -> None:
            assert progress.error is None
            done[seed].extend(token.id for token in progress.tokens)

        params, stop = SamplingParams(seed=seed), StopConditions(LENGTH)
        engine.submit(GenerationRequest(str(seed), (0,), params, stop, speculative, None, listen))
    while engine.step():
        engine.deliver(1, drafter.proposals(), [])
    assert all(len(tokens) == LENGTH for tokens in done.values())
    counters = engine.counters
    return [tuple(t) for t in done.values()], counters.accepted_tokens / max(
        1, counters.draft_tokens
    )


@pytest.fixture(scope="module")
def honest() -> tuple[list[tuple[int, ...]], float]:
    """The sequences of a right system, and the share of drafts taken."""
    return sequences(Drafter())


def joint_p_value(drawn: list[tuple[int, ...]]) -> float:
    """Chi-square of whole sequences against the product of the chain's probabilities."""
    weights = np.exp(CHAIN.astype(np.float64))
    chances = weights / weights.sum(1, keepdims=True)
    observed, expected = [0], [0.0]
    for path in itertools.product(range(VOCAB), repeat=LENGTH):
        steps = itertools.pairwise((0, *path))
        chance = COUNT * float(np.prod([chances[a, b] for a, b in steps]))
        if chance < 5:
            observed[0] += drawn.count(path)
            expected[0] += chance
        else:
            observed.append(drawn.count(path))
            expected.append(chance)
    return float(stats.chisquare(observed, expected).pvalue)


def test_speculative_sequences_have_the_models_distribution(
    honest: tuple[list[tuple[int, ...]], float],
) -> None:
    """Three tokens, many accepted drafts: every path as often as the chain itself makes it."""
    drawn, accepted = honest
    assert 0.4 < accepted < 0.95, "the drafter must be neither right nor wrong all the time"
    assert joint_p_value(drawn) > ALARM


def test_speculation_changes_no_sequence(honest: tuple[list[tuple[int, ...]], float]) -> None:
    """With and without drafts all sequences are the same, one by one."""
    assert honest[0] == sequences(Drafter(), speculative=False)[0]


def test_noise_shared_by_two_positions_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: positions 2i and 2i + 1 draw with one noise, in drafter and verifier alike."""

    def biased(logits: Logits, params: SamplingParams, counts: TokenCounts, position: int) -> int:
        return sample(logits, params, counts, position - position % 2)

    monkeypatch.setattr(sequence_module, "sample", biased)
    assert joint_p_value(sequences(Drafter())[0]) < ALARM


@pytest.mark.parametrize("rule", ["always", "likely enough"])
def test_a_wrong_rule_of_acceptance_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a draft is taken because it came, or because the model finds it likely enough."""
    drafter = Drafter()
    honest = Draws.token

    def biased(self: Any, index: int, sequence: Sequence) -> int:
        draft = drafter.drafted.get((sequence.params.seed, len(sequence)))
        row = self.row(index)
        if draft is not None and (rule == "always" or row[draft] > row.max() - 1.0):
            return draft
        return honest(self, index, sequence)

    monkeypatch.setattr(Draws, "token", biased)
    assert joint_p_value(sequences(drafter)[0]) < ALARM
