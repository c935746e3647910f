"""Upgrades and rollbacks change nothing that Kubernetes does not let anyone change."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipstream.discovery.fakes import FakeApiServer
from tests.chart import combos
from tests.chart.helm import (
    CHART,
    NAMESPACE,
    RELEASE,
    Object,
    Render,
    merged,
    name_of,
    parse,
    run,
    template,
    value_files,
)

# What a StatefulSet's spec lets change; all else is refused.
_STATEFUL = {
    "replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy", "minReadySeconds",
}  # fmt: skip


def frozen(item: Object) -> dict[str, Any]:
    """The fields of an object that an update must leave as they are."""
    spec = item.get("spec", {})
    match item["kind"]:
        case "Deployment" | "DaemonSet":
            return {"selector": spec["selector"]}
        case "StatefulSet":
            return {key: value for key, value in spec.items() if key not in _STATEFUL}
        case "Job":
            changing = {"parallelism", "suspend", "ttlSecondsAfterFinished", "backoffLimit"}
            changing |= {"activeDeadlineSeconds"}
            return {key: value for key, value in spec.items() if key not in changing}
        case "Service":
            return {"headless": spec.get("clusterIP") == "None"}
        case "PersistentVolumeClaim":
            return {key: value for key, value in spec.items() if key != "resources"}
        case "RoleBinding":
            return {"roleRef": item["roleRef"]}
        case "Secret":
            return {"type": item.get("type", "Opaque")}
    return {}


def _replaced(item: Object) -> bool:
    """Whether helm deletes the old object first."""
    annotations = item["metadata"].get("annotations", {})
    return "helm.sh/hook" in annotations and "before-hook-creation" in annotations.get(
        "helm.sh/hook-delete-policy", "before-hook-creation"
    )


def faults(old: Render, new: Render) -> Iterator[str]:
    there = {(item["apiVersion"], name_of(item)): item for item in old.objects}
    for item in new.objects:
        before = there.get((item["apiVersion"], name_of(item)))
        if before is not None and not _replaced(item) and frozen(before) != frozen(item):
            yield f"{name_of(item)}: {frozen(before)} became {frozen(item)}"


# What users change in a running release beside the options of combos.py.
CHANGES = {
    "gateway": {"image": {"tag": "2.0.0"}, "replicas": 1, "extraArgs": ["--max-requests=9"]},
    "verifier": {
        "image": {"tag": "2.0.0"},
        "resources": {"requests": {"cpu": "8"}},
        "extraEnv": [{"name": "A", "value": "b"}],
        "podLabels": {"tier": "b"},
        "podAnnotations": {"a": "b"},
    },
    "drafter": {
        "replicas": 2,
        "probes": {"startup": {"failureThreshold": 500}},
        "updateStrategy": {"type": "OnDelete"},
    },
    "redis": {"bundled": {"maxMemory": "100mb", "resources": {"limits": {"memory": "9Gi"}}}},
    "model": {"name": "org/other"},
    "commonLabels": {"team": "a"},
    "commonAnnotations": {"a": "b"},
}


def states() -> dict[str, dict[str, Render]]:
    """Renders between which a release can go, by where it keeps its models: that alone decides
    about claims, and cannot be changed."""
    found: dict[str, dict[str, Render]] = {}
    for row in combos.rows():
        found.setdefault(row["cache"], {})[combos.label_of(row)] = combos.render_of(row)
    for cache, renders in found.items():
        base = combos.values_of({"cache": cache})
        renders |= {"as it is": template(base), "changes": template(merged(base, CHANGES))}
    return found


@pytest.fixture(scope="module")
def next_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as its next version: packed by helm, with other version numbers."""
    folder = tmp_path_factory.mktemp("next")
    run("package", CHART, "--version=9.8.7", "--app-version=9.8.7", f"--destination={folder}")
    (packed,) = folder.glob("*.tgz")
    assert packed.name == "slipstream-9.8.7.tgz"
    return packed


def test_changes_keep_what_cannot_change() -> None:
    """Between any two combinations of options, and whatever else users change, there and back."""
    for cache, renders in states().items():
        found = {
            f"{cache}: {before} -> {after}: {fault}"
            for before, after in itertools.permutations(renders, 2)
            for fault in faults(renders[before], renders[after])
        }
        assert not found, "\n".join(sorted(found)[:20])


@pytest.mark.parametrize("name", value_files())
def test_a_new_version_rolls_every_role(name: str, next_chart: Path) -> None:
    """Each ready setup can be upgraded and rolled back, and its pods get the new images."""
    old = template(files=[value_files()[name]])
    new = template(files=[value_files()[name]], chart=next_chart)
    assert [*faults(old, new), *faults(new, old)] == []
    for item in old.of("Deployment", "StatefulSet"):
        (before,) = item["spec"]["template"]["spec"]["containers"]
        (after,) = new.get(*name_of(item).split("/"))["spec"]["template"]["spec"]["containers"]
        ours = "redis" not in before["name"]
        assert (before["image"] != after["image"]) == ours, before["name"]


def test_a_chart_that_changes_nothing_restarts_nothing(tmp_path: Path) -> None:
    """Another version of the chart with the same application leaves every pod as it is."""
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    run(
        "package", CHART, "--version=9.8.7", f"--app-version={version}", f"--destination={tmp_path}"
    )
    new = template(chart=next(tmp_path.glob("*.tgz")))
    for item in template().of("Deployment", "StatefulSet"):
        after = new.get(item["kind"], item["metadata"]["name"])
        assert item["spec"] == after["spec"], name_of(item)


def test_a_frozen_field_shows() -> None:
    """The comparison tells what Kubernetes would refuse: here a claim of another size."""
    old, new = (
        template({"model": {"cache": {"type": "perPod", "size": size}}}) for size in ("1Gi", "2Gi")
    )
    told = "\n".join(faults(old, new))
    assert "StatefulSet/slipstream-verifier" in told
    assert "StatefulSet/slipstream-drafter" in told


def test_what_is_made_up_is_kept() -> None:
    """Keys and passwords are made once: an upgrade finds those of before in the cluster, also where
    a key was added by hand."""
    with FakeApiServer(namespace=NAMESPACE) as api:
        options = [f"--namespace={NAMESPACE}", f"--kubeconfig={api.kubeconfig}"]
        # With this helm looks things up, as an upgrade does; the double has no schemas to check by.
        options += ["--dry-run=server", "--disable-openapi-validation"]

        def secrets() -> dict[str, Object]:
            made = Render("", parse(run("template", RELEASE, CHART, *options))).of("Secret")
            return {item["metadata"]["name"]: item for item in made}

        first, other = secrets(), secrets()
        assert first.keys() == {f"{RELEASE}-api-keys", f"{RELEASE}-redis"}
        assert all(first[name]["data"] != other[name]["data"] for name in first)
        first[f"{RELEASE}-api-keys"]["data"]["mine"] = "bWluZQ=="
        for item in first.values():
            # As helm marks what it installs.
            owner = {"release-name": RELEASE, "release-namespace": NAMESPACE}
            notes = {f"meta.helm.sh/{key}": value for key, value in owner.items()}
            api.put({**item, "metadata": {**item["metadata"], "annotations": notes}})
        assert {name: item["data"] for name, item in secrets().items()} == {
            name: item["data"] for name, item in first.items()
        }


def test_what_is_made_up_fits_together() -> None:
    """The gateway's file has the hash of the key in the clear, Redis's that of the password."""
    render = template()
    keys, redis = (
        {
            key: base64.b64decode(value).decode()
            for key, value in render.get("Secret", f"{RELEASE}-{name}")["data"].items()
        }
        for name in ("api-keys", "redis")
    )
    assert keys["keys"] == f"default:{hashlib.sha256(keys['api-key'].encode()).hexdigest()}\n"
    hashed = hashlib.sha256(redis["redis-password"].encode()).hexdigest()
    assert redis["users.acl"] == f"user default on #{hashed} ~* &* +@all\n"
