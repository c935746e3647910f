"""The Jobs of a release, as helm renders them, leave what the other pods wait for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from slipstream.core.layer_plan import LayerPlan
from slipstream.core.model_folder import fingerprint
from tests.rendered.api import ReleaseApi
from tests.rendered.checks import check
from tests.rendered.cluster import Api, Cluster
from tests.rendered.container import Container
from tests.rendered.manifests import Failed, Manifests
from tests.rendered.releases import DRAFTER, NAMESPACE, VERIFIER, hub_of, rendered

# For a machine that does other things, too.
_SECONDS = 250.0
_VALUES: dict[str, Any] = {
    "model": {"cache": {"type": "shared"}},
    "drafter": {"layerPlan": {"source": "tune"}},
    # One plan on one prompt, and no services: what ends it is the plan, not the budget.
    "tune": {
        "budget": "1h",
        "extraArgs": [
            "--limit=1", "--max-tokens=4", "--trials=1", "--finalists=0", "--threads=1",
        ],
    },
    "redis": {"mode": "none"},
}  # fmt: skip


_NO_VOLUME = {"name": "plans", "mountPath": "/plan"}


@asynccontextmanager
async def _cluster(
    manifests: Manifests, folder: Path, api: Api | None = None
) -> AsyncIterator[Cluster]:
    cluster = Cluster(manifests, folder, api)
    try:
        yield cluster
    finally:
        await cluster.close()


def _file(container: Container, option: str) -> Path:
    """The local path that an option of its command names."""
    (word,) = (word for word in container.command if word.startswith(f"{option}="))
    return Path(word.partition("=")[2])


async def _done(cluster: Cluster, component: str) -> str:
    code, output = await cluster.run_job(cluster.manifests.job(component), _SECONDS)
    assert code == 0, output
    return output


@pytest.mark.slow
@pytest.mark.timeout(800)
async def test_model_and_plan_arrive_where_pods_wait_for_them(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The download puts a whole model where verifiers look, and the search finds it there; its plan
    is in the ConfigMap without which no drafter starts, byte for byte, by rights that are given."""
    with hub_of(tiny_model_dir) as hub:
        manifests = rendered(hub.url, _VALUES)
        check(manifests)
        api = ReleaseApi(manifests)
        try:
            async with _cluster(manifests, tmp_path / "pods", api) as cluster:
                await _done(cluster, "model-download")
                model = _file(cluster.containers(VERIFIER)["verifier"], "--model")
                assert fingerprint(model) == fingerprint(tiny_model_dir)
                for name, content in hub.files.items():
                    assert (model / name).read_bytes() == content
                with pytest.raises(Failed, match='configmap ".*" not found') as waiting:
                    cluster.containers(DRAFTER)
                said = await _done(cluster, "tune")
            (asked,) = (one for _, one in api.asked() if one.resource == "configmaps")
            assert api.refused() == []
        finally:
            api.close()
    assert hub.served["model.safetensors"] == 1, "the search found the model there"
    assert asked.name in waiting.value.message
    assert f"{NAMESPACE}/{asked.name}, key plan.json" in said
    async with _cluster(_with(manifests, asked.body), tmp_path / "later") as cluster:
        plan = _file(cluster.containers(DRAFTER)["drafter"], "--layer-plan")
        assert plan.read_text() == asked.body["data"]["plan.json"]
        LayerPlan.load(plan).check(fingerprint(tiny_model_dir), 4)


def _with(manifests: Manifests, config_map: dict[str, Any]) -> Manifests:
    return Manifests(manifests.namespace, (*manifests.objects, config_map))


@pytest.mark.parametrize(
    ("component", "container", "place", "value", "reason"),
    [
        ("tune", "tune", ("args", 2), "--out=/plans/plan.json", "ReadOnlyFileSystem"),
        ("tune", "save-plan", ("volumeMounts", 2), _NO_VOLUME, "FailedMount"),
        ("model-download", "fetch-model", ("command", 0), "slipsteam", "StartError"),
    ],
)  # fmt: skip
async def test_an_error_in_a_job_is_named(
    tmp_path: Path, component: str, container: str, place: tuple[str, int], value: Any, reason: str
) -> None:
    """A path that no volume covers, a volume that is not there, a program that is not in the
    image: the pod does not start, and nothing runs."""
    manifests = rendered("", _VALUES)
    spec = manifests.job(component)["spec"]["template"]["spec"]
    (found,) = (
        each
        for each in (*spec.get("initContainers", []), *spec["containers"])
        if each["name"] == container
    )
    found[place[0]][place[1]] = value
    async with _cluster(manifests, tmp_path) as cluster:
        with pytest.raises(Failed) as failed:
            await cluster.run_job(manifests.job(component), _SECONDS)
        assert failed.value.reason == reason, failed.value
