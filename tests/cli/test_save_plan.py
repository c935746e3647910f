"""`slipstream k8s save-plan` against the API server's double."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from slipstream.cli.main import app
from slipstream.core.errors import (
    ClusterForbidden,
    ConfigurationError,
    NotAuthenticated,
    Unavailable,
)
from slipstream.core.layer_plan import LayerPlan
from slipstream.discovery.fakes import FakeApiServer


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApiServer]:
    with FakeApiServer(namespace="models") as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
        yield api


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "plan.json"
    LayerPlan("int4", "int8", frozenset({3}), frozenset({4, 5})).save(file)
    return file


def save(*options: str) -> Any:
    # What it raises is what `slipstream` ends with.
    return CliRunner().invoke(app, ["k8s", "save-plan", *options], catch_exceptions=True)


def test_plan_is_stored_and_replaced(api: FakeApiServer, plan: Path, tmp_path: Path) -> None:
    """The ConfigMap holds the file as it is; a new plan replaces it, and leaves other keys."""
    result = save(str(plan), "--configmap", "chat-plan")
    assert result.exit_code == 0, result.output
    assert result.output == (
        "models/chat-plan, key plan.json: int4 (head int8), 1 attention and 2 MLP sublayers"
        " skipped\n"
    )
    stored = api.get("ConfigMap", "models", "chat-plan")
    assert stored is not None
    assert stored["data"] == {"plan.json": plan.read_text()}
    assert LayerPlan.load(plan).precision == "int4"
    other = tmp_path / "other.json"
    LayerPlan("int8").save(other)
    assert save(str(other), "--configmap", "chat-plan", "--key", "b.json").exit_code == 0
    assert save(str(other), "--configmap", "chat-plan").exit_code == 0
    stored = api.get("ConfigMap", "models", "chat-plan")
    assert stored is not None
    assert stored["data"] == {"plan.json": other.read_text(), "b.json": other.read_text()}


def test_a_configmap_of_somebody_else(api: FakeApiServer, plan: Path) -> None:
    """What others have put into the ConfigMap stays; the key is ours from then on."""
    metadata = {"name": "chat-plan", "namespace": "models", "labels": {"a": "b"}}
    data = {"plan.json": "{}", "note": "kept"}
    api.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    assert save(str(plan), "--configmap", "chat-plan").exit_code == 0
    stored = api.get("ConfigMap", "models", "chat-plan")
    assert stored is not None
    assert stored["data"] == {"plan.json": plan.read_text(), "note": "kept"}
    assert stored["metadata"]["labels"] == {"a": "b"}


def test_what_goes_wrong(api: FakeApiServer, plan: Path, tmp_path: Path) -> None:
    """Each failure is one message that says what would be right, and stores nothing."""
    (tmp_path / "bad.json").write_text('{"precision": "int3"}')
    broken = str(tmp_path / "config")
    (tmp_path / "config").write_text("clusters: [")
    for options, kind, message in (
        ([str(tmp_path / "bad.json"), "--configmap", "p"], ConfigurationError, "precision must"),
        ([str(tmp_path / "none"), "--configmap", "p"], ConfigurationError, "cannot read layer"),
        ([str(plan), "--configmap", "Not_A_Name"], ConfigurationError, "no name of a ConfigMap"),
        ([str(plan), "--configmap", "p", "--key", "a/b"], ConfigurationError, "no key of a"),
        (
            [str(plan), "--configmap", "p", "--kubeconfig", "/none"],
            ConfigurationError,
            "no such file",
        ),
        ([str(plan), "--configmap", "p", "--kubeconfig", broken], ConfigurationError, "--context"),
        ([str(plan), "--configmap", "p", "--context", "c"], ConfigurationError, "no way to a"),
    ):
        result = save(*options)
        assert isinstance(result.exception, kind), result.output
        assert message in result.exception.message
    assert api.get("ConfigMap", "models", "p") is None


@pytest.mark.parametrize(
    ("trouble", "kind", "message"),
    [
        (lambda api: api.forbid("patch", "configmaps"), ClusterForbidden, "verbs [patch]"),
        (lambda api: setattr(api, "failing", 503), Unavailable, "told to fail"),
        (lambda api: setattr(api, "token", "other"), NotAuthenticated, "log in again"),
        (lambda api: api.stop(), Unavailable, "cannot be reached"),
    ],
)
def test_the_api_server_refuses(
    api: FakeApiServer, plan: Path, trouble: Any, kind: type[Exception], message: str
) -> None:
    """A missing right is named with the Role that grants it; other refusals are told as they
    are."""
    trouble(api)
    result = save(str(plan), "--configmap", "chat-plan")
    assert isinstance(result.exception, kind), result.exception
    assert message in str(result.exception)
