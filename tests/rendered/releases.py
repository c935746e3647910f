"""The releases that these tests run: helm's own rendering of the chart, made small."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from tests.chart.helm import CHART, merged, template
from tests.rendered.hub import REPOSITORY
from tests.rendered.manifests import Manifests

NAMESPACE = "models"
FULLNAME = "slipstream"
_TRIAL = CHART / "values" / "cpu-trial.yaml"
# One thread each, room for some sequences, a model of a megabyte; and short times to stop.
_SMALL = {"threads": 1, "dtype": "float32", "kvCacheGib": 0.0625, "preStopSeconds": 1}


def values(hub: str) -> dict[str, Any]:
    """What every release here has.

    Args:
        hub: URL of the hub that models come from.
    """
    return {
        "model": {
            "name": REPOSITORY,
            "servedName": "tiny",
            "download": {"env": [{"name": "HF_ENDPOINT", "value": hub}]},
        },
        "gateway": {"preStopSeconds": 1, "stopGraceSeconds": 30},
        "verifier": {**_SMALL, "stopGraceSeconds": 15, "exactness": "strict"},
        "drafter": {**_SMALL, "stopGraceSeconds": 3},
    }


def rendered(hub: str, more: Mapping[str, Any]) -> Manifests:
    """The release of the CPU trial's values, `values` and `more`."""
    release = template(merged(values(hub), more), files=[_TRIAL], namespace=NAMESPACE)
    return Manifests(NAMESPACE, release.objects).copy()


def secret(manifests: Manifests, name: str, key: str) -> str:
    return base64.b64decode(manifests.get("Secret", name)["data"][key]).decode()
