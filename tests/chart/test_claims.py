"""Claims of a StatefulSet can never change: an upgrade that would says so, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from slipstream.discovery.fakes import FakeApiServer
from tests.chart.helm import CHART, NAMESPACE, RELEASE, HelmError, Object, run, template

PER_POD = {"type": "perPod", "size": "1024Mi"}


def _as_stored(item: Object) -> Object:
    """As a cluster has what helm has installed: with its marks, fields that an API server adds, and
    amounts as that writes them."""
    owner = {"release-name": RELEASE, "release-namespace": NAMESPACE}
    notes = {f"meta.helm.sh/{key}": value for key, value in owner.items()}
    spec = json.loads(json.dumps(item["spec"]).replace('"1024Mi"', '"1Gi"'))
    for claim in spec.get("volumeClaimTemplates", []):
        claim |= {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
        claim |= {"status": {"phase": "Pending"}}
        claim["spec"] |= {"volumeMode": "Filesystem"}
    return {**item, "metadata": {**item["metadata"], "annotations": notes}, "spec": spec}


class Cluster:
    """What helm asks in an upgrade: it holds the StatefulSets of a release."""

    def __init__(self, api: FakeApiServer) -> None:
        self._api = api

    def install(self, values: dict[str, Any]) -> None:
        for item in template(values).of("StatefulSet"):
            self._api.put(_as_stored(item))

    def delete(self, role: str) -> None:
        self._api.delete("StatefulSet", NAMESPACE, f"{RELEASE}-{role}")

    def upgrade(self, values: dict[str, Any]) -> str:
        """What helm says against it; "" if nothing."""
        options = [f"--namespace={NAMESPACE}", f"--kubeconfig={self._api.kubeconfig}"]
        # With the first of these helm looks things up; the double has no schemas to check by.
        options += ["--dry-run=server", "--disable-openapi-validation", "--values=-"]
        try:
            run("template", RELEASE, CHART, *options, given=json.dumps(values))
        except HelmError as error:
            return str(error)
        return ""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with FakeApiServer(namespace=NAMESPACE) as api:
        yield Cluster(api)


def _model(**cache: str) -> dict[str, Any]:
    return {"model": {"cache": PER_POD | cache}}


def _way(role: str) -> str:
    return f"kubectl -n {NAMESPACE} delete statefulset {RELEASE}-{role} --cascade=orphan"


def test_other_claims_of_models_are_refused_with_the_way_to_them(cluster: Cluster) -> None:
    """Size, class and type: each StatefulSet is named, with what it has, what is asked for and the
    command to give; a StatefulSet that is gone is in the way of nothing."""
    cluster.install(_model())
    wanted = {
        "claims of 2Gi of the default class": _model(size="2Gi"),
        "claims of 1Gi of fast class": _model(storageClass="fast"),
        "no claims": _model(type="ephemeral"),
    }
    for text, values in wanted.items():
        told = cluster.upgrade(values)
        for role in ("verifier", "drafter"):
            asked = f"model.cache asks for {text}, and {RELEASE}-{role} has claims of 1Gi of the"
            assert asked in told
            assert _way(role) in told
        assert _way("redis") not in told
        assert '"Another volume"' in told
    cluster.delete("verifier")
    told = cluster.upgrade(_model(size="2Gi"))
    assert _way("drafter") in told
    assert _way("verifier") not in told
    cluster.delete("drafter")
    assert cluster.upgrade(_model(size="2Gi")) == ""


def test_other_claims_of_redis_are_refused(cluster: Cluster) -> None:
    """With or without persistence; the models' StatefulSets, which have none, are left alone."""
    cluster.install({})
    told = cluster.upgrade({"redis": {"bundled": {"persistence": {"enabled": False}}}})
    asked = f"redis.bundled.persistence asks for no claims, and {RELEASE}-redis has claims of 2Gi"
    assert asked in told
    assert [_way(role) in told for role in ("redis", "verifier", "drafter")] == [True, False, False]
    assert cluster.upgrade({"redis": {"mode": "none"}}) == ""


def test_pods_that_have_no_claim_yet_are_to_be_renewed_by_hand(cluster: Cluster) -> None:
    """A StatefulSet cannot give a running pod a volume, and stops at the first that lacks it; where
    there are claims only their size or class changes, and its own rollout does it."""
    cluster.install({"model": {"cache": {"type": "ephemeral"}}, "drafter": {"enabled": False}})
    by_hand = f"kubectl -n {NAMESPACE} delete pod {RELEASE}-verifier-0"
    assert by_hand in cluster.upgrade(_model())
    cluster.install(_model())
    told = cluster.upgrade(_model(size="2Gi"))
    assert _way("verifier") in told
    assert by_hand not in told


def test_equal_claims_are_no_change(cluster: Cluster) -> None:
    """However the size is written, whatever a cluster adds, whatever else an upgrade changes."""
    cluster.install(_model())
    assert cluster.upgrade(_model(size="1Gi") | {"verifier": {"replicas": 3}}) == ""
