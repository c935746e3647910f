"""Layer plans that come with the package, by the fingerprint of their model."""

from __future__ import annotations

from pathlib import Path

from slipstream.core.layer_plan import LayerPlan

_FOLDER = Path(__file__).parent


def shipped_plan(fingerprint: str) -> LayerPlan | None:
    """The plan that `slipstream tune` found for this model, None where none is shipped."""
    path = _FOLDER / f"{fingerprint}.json"
    return LayerPlan.load(path) if path.is_file() else None
