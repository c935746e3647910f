"""The releases that these tests run: helm's own rendering of the chart, made small."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chart.helm import CHART, merged, template
from tests.models.hub_double import Hub
from tests.rendered.manifests import Manifests

NAMESPACE = "models"
FULLNAME = "slipstream"
GATEWAY, VERIFIER, DRAFTER = (f"{FULLNAME}-{role}" for role in ("gateway", "verifier", "drafter"))
_TRIAL = CHART / "values" / "cpu-trial.yaml"
# One thread each, and room for a few sequences of a model of a megabyte.
_SMALL = {"threads": 1, "dtype": "float32", "kvCacheGib": 0.0625}


def hub_of(model: Path) -> Hub:
    """One that has this model, under the name that `values` ask for."""
    return Hub({file.name: file.read_bytes() for file in model.iterdir()})


def values(hub: str) -> dict[str, Any]:
    """What every release here has.

    Args:
        hub: URL of the hub that models come from.
    """
    return {
        "model": {
            "name": "owner/name",
            "servedName": "tiny",
            "download": {"env": [{"name": "HF_ENDPOINT", "value": hub}]},
        },
        # Of two cores that do other things, too, a stream may need longer than the trial's 10 s.
        "gateway": {"stopGraceSeconds": 40},
        # No draft is worth its time on such a model: the verifier is told to take some.
        "verifier": {**_SMALL, "exactness": "strict", "extraArgs": ["--draft-length=4"]},
        "drafter": _SMALL,
    }


def rendered(hub: str, more: Mapping[str, Any]) -> Manifests:
    """The release of the CPU trial's values, `values` and `more`."""
    release = template(merged(values(hub), more), files=[_TRIAL], namespace=NAMESPACE)
    return Manifests(NAMESPACE, release.objects).copy()


def added_secret(manifests: Manifests, name: str, files: Mapping[str, bytes]) -> Manifests:
    """With a Secret that is not of the chart."""
    data = {key: base64.b64encode(value).decode() for key, value in files.items()}
    found = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}
    return Manifests(manifests.namespace, (*manifests.objects, found))


def secret(manifests: Manifests, name: str, key: str) -> str:
    return base64.b64decode(manifests.get("Secret", name)["data"][key]).decode()
