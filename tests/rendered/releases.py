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
GATEWAY, VERIFIER, DRAFTER = (f"{FULLNAME}-{role}" for role in ("gateway", "verifier", "drafter"))
_TRIAL = CHART / "values" / "cpu-trial.yaml"
# One thread each, and room for a few sequences of a model of a megabyte.
_SMALL = {"threads": 1, "dtype": "float32", "kvCacheGib": 0.0625}


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
        # Of two cores that do other things, too, a stream may need longer than the trial's 10 s.
        "gateway": {"stopGraceSeconds": 40},
        "verifier": {**_SMALL, "exactness": "strict"},
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
