"""How objects, images and models are called."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import Render, template, value_files
from tests.chart.pods import containers, option, pod_of, pods, selected
from tests.chart.policies import wiring


def _names(render: Render, kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in render.of(kind)}


@pytest.mark.parametrize(
    ("release", "values", "full"),
    [
        ("slipstream", {}, "slipstream"),
        ("my-slipstream-2", {}, "my-slipstream-2"),
        ("chat", {}, "chat-slipstream"),
        ("chat", {"nameOverride": "llm"}, "chat-llm"),
        ("llm", {"nameOverride": "llm"}, "llm"),
        ("chat", {"fullnameOverride": "models"}, "models"),
    ],
)
def test_full_names(release: str, values: dict[str, str], full: str) -> None:
    """Objects are called after the release and the chart, once each, or as they are told."""
    render = template(values, release=release)
    assert _names(render, "Deployment") == {f"{full}-gateway"}
    roles = {f"{full}-{role}" for role in ("verifier", "drafter", "redis")}
    assert _names(render, "StatefulSet") == roles
    assert _names(render, "Service") >= {f"{full}-gateway", *roles}


@pytest.mark.parametrize("release", ["r" * 53, "a-" * 26 + "a", "slipstream-" + "x" * 42])
def test_long_names(release: str) -> None:
    """The longest release names that helm takes give names that Kubernetes takes, of pods too."""
    render = template({"drafter": {"shards": 4, "replicas": 25}}, release=release)
    assert list(wiring.names_are_valid_and_single(render)) == []
    for item in render.of("StatefulSet"):
        # The label controller-revision-hash is the name, a dash and ten characters.
        assert len(item["metadata"]["name"]) + 11 <= 63
    for item in render.objects:
        for value in item["metadata"]["labels"].values():
            assert len(value) <= 63


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "slipstream/verifier:0.1.0-cpu"),
        ({"verifier": {"gpu": {"count": 1}}}, "slipstream/verifier:0.1.0-cuda"),
        ({"image": {"variant": "cuda"}}, "slipstream/verifier:0.1.0-cuda"),
        (
            {"image": {"registry": "ghcr.example/x/"}},
            "ghcr.example/x/slipstream/verifier:0.1.0-cpu",
        ),
        ({"verifier": {"image": {"tag": "1.2"}}}, "slipstream/verifier:1.2"),
        (
            {"verifier": {"image": {"tag": "1.2", "digest": f"sha256:{'a' * 64}"}}},
            f"slipstream/verifier@sha256:{'a' * 64}",
        ),
        (
            {
                "image": {"registry": "ghcr.example"},
                "verifier": {"image": {"repository": "mine", "digest": f"sha256:{'0' * 64}"}},
            },
            f"ghcr.example/mine@sha256:{'0' * 64}",
        ),
    ],
)
def test_images(values: dict[str, object], image: str) -> None:
    """An image's registry, repository, tag and digest; a digest stands for itself."""
    assert pod_of(template(values), "verifier").main["image"] == image


def test_one_image_for_each_role() -> None:
    """A pod's init containers run the same image as its service: nothing more is pulled."""
    for pod in pods(template()):
        assert len({container["image"] for container in pod.every_container}) == 1, pod.name


@pytest.mark.parametrize(
    ("model", "folder", "served"),
    [
        ({}, "/models/default", "smollm2-135m-instruct"),
        ({"name": "org/Model-7B"}, "/models/org--Model-7B", "org/Model-7B"),
        ({"name": "org/M@abc123"}, "/models/org--M--abc123", "org/M"),
        ({"name": "org/M", "servedName": "m"}, "/models/org--M", "m"),
        ({"path": "/opt/llama"}, "/opt/llama", "llama"),
    ],
)
def test_models(model: dict[str, str], folder: str, served: str) -> None:
    """All roles look for the model in one folder and call it by one name; fetching fills it."""
    render = template({"model": model})
    for role in ("gateway", "verifier", "drafter"):
        pod = pod_of(render, role)
        assert option(pod.main, "model") == folder
        assert option(pod.main, "served-model-name") == served
        fetched = [option(c, "to") for c in pod.spec.get("initContainers", [])]
        assert fetched == ([] if "path" in model else [folder])


def test_labels_and_annotations_of_all_objects() -> None:
    """`commonLabels` and `commonAnnotations` are on every object and pod, and in no selector."""
    render = template({"commonLabels": {"team": "a"}, "commonAnnotations": {"note": "b"}})
    for item in [*render.objects, *({"metadata": pod.metadata} for pod in pods(render))]:
        assert item["metadata"]["labels"]["team"] == "a"
        assert item["metadata"]["annotations"]["note"] == "b"
    assert list(wiring.workloads_select_their_own_pods(render)) == []


@pytest.mark.parametrize("values", [{}, {"nameOverride": "llm"}])
def test_shards_keep_to_their_own_release(values: dict[str, str]) -> None:
    """The shards of a drafter prefer the nodes of its own shards, whatever the chart is called, and
    not those of another release's; one of a single pod has no such wish, nor where it is off."""

    def wishes(release: str = "one", **drafter: object) -> list[dict[str, Any]]:
        pod = pod_of(
            template({**values, "drafter": drafter}, files=files, release=release), "drafter"
        )
        key = "preferredDuringSchedulingIgnoredDuringExecution"
        return [w["podAffinityTerm"] for w in pod.spec["affinity"]["podAffinity"].get(key, [])]

    files = [value_files()["sharded-drafter"]]
    (near,) = wishes()
    assert near["topologyKey"] == "kubernetes.io/hostname"
    own, other = (template(values, files=files, release=name) for name in ("one", "two"))
    found = [selected(near["labelSelector"], pod.labels) for pod in pods(own)]
    assert [pod.component for pod, near in zip(pods(own), found, strict=True) if near] == [
        "drafter"
    ]
    assert not [pod for pod in pods(other) if selected(near["labelSelector"], pod.labels)]
    assert wishes(shards=1) == wishes(shardColocation="off") == []


def test_pull_secrets_and_policy() -> None:
    """Every pod pulls with the given Secrets and policy."""
    render = template({"image": {"pullSecrets": ["given-pull"], "pullPolicy": "Always"}})
    for pod in pods(render):
        assert pod.spec["imagePullSecrets"] == [{"name": "given-pull"}]
    assert {c["imagePullPolicy"] for _, _, c in containers(render)} == {"Always"}
