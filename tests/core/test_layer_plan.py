"""Layer plans: what is saved is what is loaded, and what cannot serve is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.core.errors import ConfigurationError, ModelMismatch
from slipstream.core.layer_plan import LayerPlan

PRECISIONS = st.sampled_from(["native", "int8", "int4", "w8a8"])
HEADS = st.sampled_from(["native", "int8", "int4", "w8a8", "screened"])
LAYERS = st.frozensets(st.integers(0, 200), max_size=12)


@given(
    plan=st.builds(
        LayerPlan,
        precision=PRECISIONS,
        head_precision=HEADS,
        skip_attention=LAYERS,
        skip_mlp=LAYERS,
        model_fingerprint=st.text("0123456789abcdef", max_size=32),
    )
)
def test_load_gives_back_what_was_saved(
    plan: LayerPlan, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any plan survives the way through its file unchanged."""
    path = tmp_path_factory.getbasetemp() / "plan.json"
    plan.save(path)
    assert LayerPlan.load(path) == plan


def test_a_short_file_means_the_defaults(tmp_path: Path) -> None:
    """A file that says only what differs is a plan; all else is the full model."""
    path = tmp_path / "plan.json"
    path.write_text('{"skip_mlp": [3]}')
    assert LayerPlan.load(path) == LayerPlan(skip_mlp=frozenset({3}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe",
        b'{"precision": "int2"}',
        b'{"precision": ["int8"]}',
        b'{"head_precision": null}',
        b'{"precision": "screened"}',
        b'{"skip_attention": 4}',
        b'{"skip_mlp": {"3": 4}}',
        b'{"skips": [4]}',
        b"[" * 100_000,
        b'{"skip_attention": null}',
        b'{"skip_attention": ["a"]}',
        b'{"skip_attention": [1.5]}',
        b'{"skip_mlp": [true]}',
        b'{"skip_mlp": [[1]]}',
        b'{"skip_mlp": [-1]}',
        b'{"model_fingerprint": 5}',
        b'{"unknown": 1}',
    ],
)
def test_what_is_no_plan_is_refused(content: bytes, tmp_path: Path) -> None:
    """Broken JSON, other shapes, wrong types and unknown fields are configuration errors."""
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError):
        LayerPlan.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error names the file that is not there."""
    with pytest.raises(ConfigurationError, match="nowhere.json"):
        LayerPlan.load(tmp_path / "nowhere.json")


def test_check_takes_the_model_it_was_made_for() -> None:
    """A plan fits its own model, and one without a fingerprint fits any; the last layer counts."""
    LayerPlan(model_fingerprint="a" * 32, skip_mlp=frozenset({29})).check("a" * 32, 30)
    LayerPlan(skip_attention=frozenset({0, 29})).check("b" * 32, 30)


def test_check_refuses_another_model_and_layers_beyond_it() -> None:
    """A plan for another model is a mismatch; a layer that does not exist is named."""
    with pytest.raises(ModelMismatch, match="aaaa"):
        LayerPlan(model_fingerprint="a" * 32).check("b" * 32, 30)
    with pytest.raises(ConfigurationError, match=r"\[30\]"):
        LayerPlan(skip_mlp=frozenset({30, 2})).check("b" * 32, 30)
