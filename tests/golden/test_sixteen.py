"""Sixteen requests at once on the default model in bfloat16, strict: what each has alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from slipstream.core.draft import Close, Open
from slipstream.core.params import SamplingParams
from slipstream.engine.checkpoint import load_model
from slipstream.engine.exactness import choose_shapes
from slipstream.engine.runner import ModelRunner
from tests.golden.reference import prompts
from tests.verifier.rig import ELSEWHERE, GREEDY, Outcome, Rig, plain
from tests.verifier.scripts import Draft, Proposer
from tests.verifier.test_lossless import truth_of
from verifier_service.admission import Bounds
from verifier_service.generation import CommittedToken, Finish
from verifier_service.plan import Limits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
# Too few for two of the long ones; the sixteen need five times as many.
BLOCKS = 16
# More than a step may have.
COMMON = 80
# Answers longer than the room that a sequence starts with have to ask for more.
LENGTHS = (80, 80, 40, 40, *[8] * 12)
HOW = {"ignore_eos": True, "logprobs": 2}
SCRIPT = [Draft("right", 3, 0), Draft("half", 3, 1), Draft("wrong", 2, 0)]


@dataclass(frozen=True, slots=True)
class Sixteen:
    """The requests, what each is answered alone, and a small pool to serve them all from."""

    runner: ModelRunner
    limits: Limits
    asked: list[tuple[tuple[int, ...], SamplingParams]]
    alone: list[Outcome]


def _requests(model: Path) -> list[tuple[tuple[int, ...], SamplingParams]]:
    """Four with a common beginning and twelve short ones, every second one greedy."""
    texts = prompts(model)
    made = []
    for i in range(16):
        sampled = SamplingParams(temperature=1.0, top_p=0.95, repetition_penalty=1.1, seed=i)
        prompt = texts[8][: COMMON + 9 * i] if i < 4 else texts[i][: 5 + 3 * i]
        made.append((prompt, GREEDY if i % 2 else sampled))
    return made


def _tokens(outcome: Outcome) -> list[CommittedToken]:
    return [token for step in outcome.steps for token in step]


@pytest.fixture
def sixteen(model_dir: Path) -> Sixteen:
    """Alone each is answered plainly and with nothing cached."""
    loaded = load_model(model_dir, dtype="bfloat16")
    # Room for the probe of strict shapes, which takes longer in a larger pool.
    runner = ModelRunner(loaded, 15 << 20)
    _, shapes = choose_shapes(runner, "strict")
    if shapes.max_rows < 64:
        pytest.skip("prompts and decoding never share a step here")
    limits = Limits.of(strict=True, exact_rows=shapes.max_rows, step_rows=64, prefill_chunk=32)
    asked, alone = _requests(model_dir), []
    for (prompt, params), length in zip(asked, LENGTHS, strict=True):
        runner.pool.forget()
        alone.append(plain(runner, prompt, params, limits=limits, max_tokens=length, **HOW))
    small = ModelRunner(loaded, (15 << 20) // runner.pool.num_blocks * BLOCKS)
    small.min_rows, small.query_multiple = shapes.min_rows, shapes.query_multiple
    return Sixteen(small, limits, asked, alone)


def test_sixteen_at_once(sixteen: Sixteen) -> None:
    """A pool that is full, a beginning that some share, prompts in pieces beside rows that decode,
    drafts right and wrong: bit for bit the tokens and log probabilities of each alone."""
    rig = Rig(sixteen.runner, limits=sixteen.limits, bounds=Bounds(seconds=math.inf))
    rig.engine.drafter_up(1, ELSEWHERE)
    outcomes, proposers = [], []
    for i, (prompt, params) in enumerate(sixteen.asked):
        outcomes.append(rig.submit(prompt, params, max_tokens=LENGTHS[i], **HOW))
        truth = truth_of(sixteen.alone[i])
        proposers.append(Proposer(rig, i + 1, outcomes[i], truth, SCRIPT))
    forward, mixed = sixteen.runner.forward, 0

    def watched(segments, hidden=None):
        nonlocal mixed
        wanted = [segment.num_logits for segment in segments]
        mixed += 0 in wanted and any(wanted)
        return forward(segments, hidden)

    sixteen.runner.forward = watched
    rig.finish(lambda: [proposer() for proposer in proposers])
    for outcome, alone in zip(outcomes, sixteen.alone, strict=True):
        assert outcome.finish is Finish.LENGTH
        assert _tokens(outcome) == _tokens(alone)
    counters = rig.engine.counters
    assert counters.preemptions > 0
    assert counters.cached_prompt_tokens >= COMMON // 16 * 16
    assert counters.draft_tokens > counters.accepted_tokens > 0
    assert mixed > 0, "a piece of a prompt that is not its last, beside others that decode"
    opened = [c.sequence_id for _, c in rig.commands if isinstance(c, Open)]
    assert len(opened) == 16 + counters.preemptions
    assert sorted(opened) == sorted(c.sequence_id for _, c in rig.commands if isinstance(c, Close))
