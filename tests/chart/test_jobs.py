"""The Jobs of a release: the model's download and the search for a layer plan."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import RELEASE, Object, Render, merged, template
from tests.chart.pods import pod_of

SHARED = {"model": {"cache": {"type": "shared"}}}
TUNED = {"drafter": {"layerPlan": {"source": "tune"}}}


def _job(render: Render, component: str) -> Object:
    label = "app.kubernetes.io/component"
    (job,) = (job for job in render.of("Job") if job["metadata"]["labels"][label] == component)
    return job


def _name(values: dict[str, Any], component: str) -> str:
    return str(_job(template(values), component)["metadata"]["name"])


@pytest.mark.parametrize(
    ("base", "component", "same", "other"),
    [
        (
            SHARED,
            "model-download",
            {"verifier": {"replicas": 3}, "commonLabels": {}},
            {"model": {"name": "org/other"}},
        ),
        (
            TUNED,
            "tune",
            {"verifier": {"replicas": 3}, "drafter": {"kvCacheGib": 1}},
            {"tune": {"extraArgs": ["--limit=3"]}},
        ),
        (TUNED, "tune", {"tune": {"backoffLimit": 9}}, {"model": {"name": "org/other"}}),
    ],
)
def test_a_job_is_another_one_only_if_it_does_something_else(
    base: dict[str, Any], component: str, same: dict[str, Any], other: dict[str, Any]
) -> None:
    """An upgrade can change no Job: what it does is in its name, and nothing else is."""
    name = _name(base, component)
    assert _name(merged(base, same), component) == name
    assert _name(merged(base, other), component) != name
    assert "helm.sh/hook" not in _job(template(base), component)["metadata"].get("annotations", {})


def test_the_job_fetches_as_pods_do() -> None:
    """The same command into the same volume, so that pods find what it has put there."""
    render = template(SHARED)
    (fetch,) = _job(render, "model-download")["spec"]["template"]["spec"]["containers"]
    pod = render.get("StatefulSet", f"{RELEASE}-verifier")["spec"]["template"]["spec"]
    (init,) = pod["initContainers"]
    assert (fetch["command"], fetch["args"]) == (init["command"], init["args"])
    assert [v for v in pod["volumes"] if v["name"] == "models"] == [
        {"name": "models", "persistentVolumeClaim": {"claimName": f"{RELEASE}-models"}}
    ]


@pytest.mark.parametrize("gpu", [{}, {"count": 1}, {"claimTemplate": "half-a-card"}])
def test_the_job_needs_no_image_and_no_gpu_of_its_own(gpu: dict[str, Any]) -> None:
    """It runs what the verifiers run, whatever they compute on, and takes none of their GPUs."""
    render = template(merged(SHARED, {"verifier": {"gpu": gpu}}))
    pod = _job(render, "model-download")["spec"]["template"]["spec"]
    (fetch,) = pod["containers"]
    assert fetch["image"] == pod_of(render, "verifier").main["image"]
    assert "resourceClaims" not in pod
    assert not {"claims", "nvidia.com/gpu"} & {*fetch["resources"], *fetch["resources"]["limits"]}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model": {"cache": {"type": "perPod"}}},
        merged(SHARED, {"model": {"download": {"job": {"enabled": False}}}}),
        {"model": {"path": "/models/x", "cache": {"type": "shared", "existingClaim": "c"}}},
    ],
)
def test_there_is_no_job_without_a_shared_claim_to_fill(values: dict[str, Any]) -> None:
    """Nor where the model is there already, or the Job is turned off."""
    assert template(values).of("Job") == []


def test_the_shared_claim_outlives_the_release_if_it_is_to() -> None:
    """By Helm's annotation, which a value takes away; one that is given is not made."""
    annotation = "helm.sh/resource-policy"
    (claim,) = template(SHARED).of("PersistentVolumeClaim")
    assert claim["metadata"]["annotations"][annotation] == "keep"
    (claim,) = template(merged(SHARED, {"model": {"cache": {"keep": False}}})).of(
        "PersistentVolumeClaim"
    )
    assert annotation not in claim["metadata"].get("annotations", {})
    given = template(merged(SHARED, {"model": {"cache": {"existingClaim": "given-models"}}}))
    assert given.of("PersistentVolumeClaim") == []


def test_the_plan_goes_from_the_job_to_the_drafters() -> None:
    """The search writes the file that is saved, under the name and key that drafters mount, which
    may not start without it; the Job may write that ConfigMap and no other."""
    render = template(TUNED)
    pod = _job(render, "tune")["spec"]["template"]["spec"]
    tune, (save,) = pod["initContainers"][-1], pod["containers"]
    given = dict(argument.split("=", 1) for argument in save["args"] if "=" in argument)
    assert f"--out={save['args'][2]}" in tune["args"]
    drafter = render.get("StatefulSet", f"{RELEASE}-drafter")["spec"]["template"]["spec"]
    (volume,) = (v["configMap"] for v in drafter["volumes"] if v["name"] == "layer-plan")
    assert volume["name"] == given["--configmap"]
    assert [item["key"] for item in volume["items"]] == [given["--key"]]
    assert not volume.get("optional", False)
    role = render.get("Role", f"{RELEASE}-tune")
    named = [rule for rule in role["rules"] if "resourceNames" in rule]
    assert [rule["resourceNames"] for rule in named] == [[given["--configmap"]]]
    free = [verb for rule in role["rules"] if rule not in named for verb in rule["verbs"]]
    assert free == ["create"]
    assert pod["serviceAccountName"] == f"{RELEASE}-tune"


def test_another_model_waits_for_a_plan_of_its_own() -> None:
    """The plan that a Job found before is for another model, which drafters would refuse."""

    def plan(model: str) -> str:
        values = merged(TUNED, {"model": {"name": model}})
        pod = template(values).get("StatefulSet", f"{RELEASE}-drafter")["spec"]["template"]["spec"]
        (name,) = (v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v)
        return str(name)

    assert len({plan("org/one"), plan("org/two"), plan("org/two@rev")}) == 3
    assert plan("org/one") == plan("org/one")


def test_a_search_goes_on_where_it_was() -> None:
    """A container that starts anew finds its journal in the pod's volume, and the Job stays when it
    has ended: deleted, the next upgrade would search again."""
    spec = _job(template(TUNED), "tune")["spec"]
    tune = spec["template"]["spec"]["initContainers"][-1]
    assert "--resume" in tune["args"]
    (report,) = (argument for argument in tune["args"] if argument.startswith("--report="))
    mounts = {mount["mountPath"]: mount["name"] for mount in tune["volumeMounts"]}
    assert mounts[report.removeprefix("--report=").rsplit("/", 1)[0]] == "plan"
    assert spec["template"]["spec"]["restartPolicy"] == "OnFailure"
    assert "ttlSecondsAfterFinished" not in spec


def test_tuning_is_asked_for_by_the_source_of_the_plan() -> None:
    """tune.enabled alone starts nothing; without it drafters mount the plan found before."""
    assert template({"tune": {"enabled": True}}).of("Job") == []
    kept = template(merged(TUNED, {"tune": {"enabled": False}}))
    assert kept.of("Job") == []
    tuned, after = (r.get("StatefulSet", f"{RELEASE}-drafter") for r in (template(TUNED), kept))
    assert tuned["spec"] == after["spec"]
