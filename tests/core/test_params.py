"""What a request may ask for: every field's borders, and that nothing odd slips through."""

from __future__ import annotations

import math
from typing import Any

import pytest

from slipstream.core.errors import InvalidParameter
from slipstream.core.params import (
    MAX_LOGIT_BIAS,
    MAX_SEED,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
    StopConditions,
)

FLOATS = {
    # field: (least allowed, most allowed, just outside)
    "temperature": (0.0, 100.0, (-0.001, 100.1)),
    "top_p": (1e-9, 1.0, (0.0, -0.5, 1.0001)),
    "min_p": (0.0, 1.0, (-0.0001, 1.0001)),
    "presence_penalty": (-2.0, 2.0, (-2.01, 2.01)),
    "frequency_penalty": (-2.0, 2.0, (-2.01, 2.01)),
    "repetition_penalty": (1e-9, 100.0, (0.0, -1.0, 101.0)),
}
ODD = (math.nan, math.inf, -math.inf, 1e308, -1e308, 10**400, -(10**400))


@pytest.mark.parametrize("name", FLOATS)
def test_borders_are_allowed(name: str) -> None:
    """Both ends of each field's range are accepted and kept as they are."""
    low, high, _ = FLOATS[name]
    for value in (low, high):
        assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize("name", FLOATS)
def test_values_outside_are_refused_by_name(name: str) -> None:
    """NaN, infinities, huge integers and values just outside raise, and name the field."""
    for value in (*FLOATS[name][2], *ODD):
        with pytest.raises(InvalidParameter, match=name) as failure:
            SamplingParams(**{name: value})
        assert failure.value.param == name


@pytest.mark.parametrize(
    ("kwargs", "param"),
    [
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"logit_bias": {-1: 0.0}}, "logit_bias"),
        ({"logit_bias": {5: math.nan}}, "logit_bias"),
        ({"logit_bias": {5: 100.5}}, "logit_bias"),
        ({"logit_bias": {5: -math.inf}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(range(MAX_LOGIT_BIAS + 1), 1.0)}, "logit_bias"),
    ],
)
def test_other_fields_are_refused_by_name(kwargs: dict[str, Any], param: str) -> None:
    """Integers and the bias map have their borders, too."""
    with pytest.raises(InvalidParameter) as failure:
        SamplingParams(**kwargs)
    assert failure.value.param == param


def test_largest_integers_are_allowed() -> None:
    """A top_k beyond any vocabulary, the largest seed and a full bias map are no errors."""
    bias = dict.fromkeys(range(MAX_LOGIT_BIAS), -100.0)
    params = SamplingParams(top_k=2**31 - 1, seed=MAX_SEED, logit_bias=bias)
    assert len(params.logit_bias) == MAX_LOGIT_BIAS


def test_bias_is_checked_against_the_vocabulary() -> None:
    """A biased token must be in the vocabulary: the last id is, the next one is not."""
    SamplingParams(logit_bias={99: 1.0}).check_vocabulary(100)
    with pytest.raises(InvalidParameter, match="100 tokens"):
        SamplingParams(logit_bias={100: 1.0}).check_vocabulary(100)


def test_plain_argmax_only_where_nothing_moves_the_logits() -> None:
    """The shortcut past the rule is taken at temperature 0 alone, without penalty or bias."""
    assert SamplingParams(temperature=0.0, top_p=0.5, top_k=3, min_p=0.1).plain_argmax
    assert not SamplingParams(temperature=1e-6).plain_argmax
    for moved in (
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"repetition_penalty": 1.1},
        {"logit_bias": {1: 1.0}},
    ):
        assert not SamplingParams(temperature=0.0, **moved).plain_argmax  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kwargs", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1, "stop_token_ids": frozenset({-1})}, "stop_token_ids"),
        (
            {"max_tokens": 1, "stop_token_ids": frozenset(range(MAX_STOP_TOKEN_IDS + 1))},
            "stop_token_ids",
        ),
    ],
)
def test_stop_conditions_are_refused_by_name(kwargs: dict[str, Any], param: str) -> None:
    """A generation of no tokens, negative and too many stop ids raise, and name the field."""
    with pytest.raises(InvalidParameter) as failure:
        StopConditions(**kwargs)
    assert failure.value.param == param


def test_stop_conditions_borders_are_allowed() -> None:
    """One token, and as many stop ids as there may be, are accepted."""
    stop = StopConditions(1, frozenset(range(MAX_STOP_TOKEN_IDS)))
    assert len(stop.stop_token_ids) == MAX_STOP_TOKEN_IDS
