"""The manifests for those without helm: as the chart renders them, for the real kubectl."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest

from k8s import render
from tests.chart import schemas
from tests.chart.helm import KUBECTL, Object, Render, parse, run
from tests.chart.pods import pods


@functools.cache
def _built(folder: Path) -> dict[tuple[str, str], Object]:
    text = run("kustomize", folder, program=KUBECTL)
    return {(item["kind"], item["metadata"]["name"]): item for item in parse(text)}


def _folder(overlay: str | None) -> Path:
    return render.HERE / ("base" if overlay is None else f"overlays/{overlay}")


@pytest.mark.parametrize("overlay", [None, *render.OVERLAYS])
def test_kustomize_builds_what_the_chart_renders(overlay: str | None) -> None:
    """`kubectl kustomize` of base and overlays gives the chart's objects, each as it renders it."""
    built = _built(_folder(overlay))
    wanted = {item.key: item.item for item in render.rendered(render.value_files(overlay))}
    assert built.keys() == wanted.keys()
    for key, item in wanted.items():
        assert built[key] == item, key


@pytest.mark.parametrize("overlay", [None, *render.OVERLAYS])
def test_manifests_know_nothing_of_helm(overlay: str | None) -> None:
    """No hook, no label of helm's, and no Secret with something made up: they are given by name."""
    built = _built(_folder(overlay))
    text = json.dumps(list(built.values()))
    assert "helm.sh/" not in text
    assert '"Helm"' not in text
    assert not [key for key in built if key[0] == "Secret"]


@pytest.mark.parametrize("overlay", [None, *render.OVERLAYS])
def test_manifests_fit_the_schemas(overlay: str | None) -> None:
    """What kustomize builds is what the API servers take."""
    faults = [
        fault
        for item in _built(_folder(overlay)).values()
        for version in schemas.VERSIONS
        for fault in schemas.faults(item, version)
    ]
    assert not faults, "\n".join(faults)


def test_nothing_drifted() -> None:
    """The files in the repository are those that the chart gives; a changed one is told."""
    made = render.files()
    assert render.drift(made) == []
    path = render.HERE / "base" / "gateway.yaml"
    assert render.drift({**made, path: "other"}) == [f"{path} is not what the chart gives"]
    assert render.drift({**made, path.with_name("new.yaml"): ""})
    del made[path]
    assert render.drift(made) == [f"{path} is not made by the chart"]


def test_the_readme_names_every_secret_that_pods_need() -> None:
    """Whoever follows k8s/README.md makes each Secret that base and overlays refer to."""
    readme = (render.HERE / "README.md").read_text()
    for overlay in (None, *render.OVERLAYS):
        objects = tuple(_built(_folder(overlay)).values())
        needed = {
            entry["valueFrom"]["secretKeyRef"]["name"]
            for pod in pods(Render("", objects))
            for container in pod.every_container
            for entry in container.get("env", [])
            if "secretKeyRef" in entry.get("valueFrom", {})
        }
        needed |= {
            volume["secret"]["secretName"]
            for pod in pods(Render("", objects))
            for volume in pod.spec.get("volumes", [])
            if "secret" in volume
        }
        made = {item["spec"]["secretName"] for item in objects if item["kind"] == "Certificate"}
        for name in needed - made:
            assert re.search(rf"(?<![\w-]){name}(?![\w-])", readme), (overlay, name)
