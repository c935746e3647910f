"""A target model served at 8 bits is a function like any other: drafts do not change a token."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.engine import integer_kernel
from tests.verifier.rig import ELSEWHERE, GREEDY, Rig, plain
from tests.verifier.scripts import KINDS, Draft, Proposer
from tests.verifier.test_lossless import (
    EVERYTHING,
    PROMPT,
    some_params,
    some_script,
    speculated,
    truth_of,
)


@settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    # The runner is given back empty by every example.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(params=some_params, script=some_script, length=st.integers(1, 40))
def test_any_drafts_any_parameters(int8_runner, params, script, length) -> None:
    """Any script of drafts under any parameters: tokens and finish reason of plain decoding."""
    prompt = tuple(range(50, 50 + length))
    expected = plain(int8_runner, prompt, params, max_tokens=24)
    got = speculated(int8_runner, prompt, params, script, truth_of(expected), max_tokens=24)
    assert (got.tokens, got.finish) == (expected.tokens, expected.finish)


@pytest.mark.parametrize("params", [GREEDY, EVERYTHING], ids=["greedy", "everything"])
def test_in_company(int8_runner, params) -> None:
    """Beside other sequences with right and wrong drafts of many widths: the tokens of plain
    decoding alone."""
    how = {"max_tokens": 30, "ignore_eos": True}
    expected = plain(int8_runner, PROMPT, params, **how)
    rig = Rig(int8_runner)
    rig.engine.drafter_up(1, ELSEWHERE)
    outcomes = [rig.submit(PROMPT, params, **how) for _ in range(3)]
    proposers = [
        Proposer(rig, number, outcome, truth_of(expected), [Draft(kind, size, 0) for kind in kinds])
        for number, (outcome, size, kinds) in enumerate(
            zip(outcomes, (1, 4, 8), (("right",), ("half", "right"), KINDS), strict=True), start=1
        )
    ]
    rig.finish(lambda: [proposer() for proposer in proposers])
    assert [outcome.tokens for outcome in outcomes] == [expected.tokens] * 3
    assert outcomes[0].counts is not None
    assert outcomes[0].counts.accepted > 10


@pytest.mark.skipif(not integer_kernel.available(), reason="needs AVX-512 VNNI")
def test_no_padding_is_needed(int8_runner) -> None:
    """The kernels fix the bits of activations, so a plain step stays one row wide."""
    assert (int8_runner.min_rows, int8_runner.query_multiple) == (1, 1)
