"""Plans that come with the package."""

from __future__ import annotations

from pathlib import Path

from slipstream.core.layer_plan import LayerPlan
from slipstream.core.model_folder import fingerprint
from slipstream.engine.model_files import read_config
from slipstream.models import plans


def test_the_default_model_has_a_plan(model_dir: Path) -> None:
    """The default model, prepared anew on any machine, is the one that the plan was made for."""
    plan = plans.shipped_plan(fingerprint(model_dir))
    assert plan is not None
    assert plan.model_fingerprint == fingerprint(model_dir)
    plan.check(fingerprint(model_dir), read_config(model_dir).num_hidden_layers)


def test_plans_are_found_by_their_model() -> None:
    """Each file is named by the model inside; a model without one has none."""
    files = list(Path(plans.__file__).parent.glob("*.json"))
    assert files
    for file in files:
        assert LayerPlan.load(file).model_fingerprint == file.stem
        assert plans.shipped_plan(file.stem) == LayerPlan.load(file)
    assert plans.shipped_plan("0" * 32) is None
