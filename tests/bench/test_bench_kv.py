"""`slipstream bench kv`: its plans, what its figures mean, and a whole run on a tiny model."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from slipstream.bench.kv import KvResult, KvSettings, naive_plans
from slipstream.bench.kv_report import gains, table
from slipstream.cli.bench import app
from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan


def _result(mode: str, accepted: tuple[int, ...], **how: object) -> KvResult:
    values = dict.fromkeys(KvResult.__dataclass_fields__, 0) | {
        "plan": "p", "mode": mode, "drafted": (10, 8, 0), "accepted": accepted, "tokens": 20,
        "fallbacks": {},
    }  # fmt: skip
    return KvResult(**(values | how))


@pytest.mark.parametrize("layers", [12, 30, 80])
def test_naive_plans(layers) -> None:
    """1, 2 and 4 sublayers of either kind, none twice, within the model and not its first layer."""
    plans = naive_plans(layers)
    for count, plan in zip((1, 2, 4), plans.values(), strict=True):
        plan.check("", layers)
        assert len(plan.skip_attention) == len(plan.skip_mlp) == count
        assert 0 not in plan.skip_attention | plan.skip_mlp


def test_figures() -> None:
    """Acceptance by position and in all, bytes for each token, the gain over the own context."""
    own = _result("own", (5, 2, 0))
    commit = _result("commit", (9, 6, 0), pulled_bytes=100, refreshed_bytes=300)
    assert own.acceptance == 7 / 18
    assert own.by_position == [0.5, 0.25, None]
    assert commit.bytes_per_token == 20
    assert gains([own, commit]) == ["p: acceptance over own context: commit +0.444"]
    assert gains([commit]) == []
    assert table([own, commit]).row_count == 2


@pytest.mark.parametrize("wrong", [{"plans": {}}, {"modes": ("all",)}, {"window": 0}])
def test_settings_that_cannot_be(tmp_path, wrong) -> None:
    """No plan, an unknown context, a number below 1: one clear error each."""
    right = {
        "questions": tmp_path, "model": tmp_path, "model_name": "m", "out": tmp_path,
        "plans": {"p": LayerPlan()},
    }  # fmt: skip
    with pytest.raises(ConfigurationError):
        KvSettings(**(right | wrong))


def test_a_whole_run(tmp_path, tiny_model_dir) -> None:
    """Real services on a tiny model: every context of a plan measured, written and shown."""
    LayerPlan(skip_mlp=frozenset({2})).save(tmp_path / "two.json")
    out = tmp_path / "kv.json"
    words = ["kv", "--plans", str(tmp_path / "two.json"), "--limit", "1", "--max-tokens", "200"]
    words += ["--model", str(tiny_model_dir), "--out", str(out), "--contexts", "own,commit"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    own, commit = json.loads(out.read_text())["results"]
    assert (own["plan"], own["mode"], commit["mode"]) == ("two", "own", "commit")
    assert own["pulled"] == own["bytes_per_token"] == 0
    assert own["prefilled"] > 0
    assert commit["pulled"] > 0 or commit["fallbacks"]
    assert commit["tokens"] == own["tokens"] > 0
