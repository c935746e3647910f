"""What the doctor finds through the API server: each finding from one flaw in a healthy release."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slipstream.cli.k8s.api import Cluster
from slipstream.cli.k8s.checks.surroundings import check_rights
from slipstream.cli.k8s.doctor import look_at_objects
from slipstream.cli.k8s.findings import Finding, Level
from slipstream.cli.k8s.release import COMPONENT, find
from slipstream.core.errors import ClusterForbidden, ConfigurationError
from slipstream.discovery.fakes import FakeApiServer
from tests.cli.releases import JUST_NOW, LONG_AGO, NOW, Objects

NAMESPACES = itertools.count(1)


@pytest.fixture(scope="module")
def api() -> Iterator[FakeApiServer]:
    with FakeApiServer() as api:
        yield api


@pytest.fixture(scope="module")
def cluster(api: FakeApiServer) -> Iterator[Cluster]:
    cluster = Cluster(api.kubeconfig)
    yield cluster
    cluster.close()


def put(api: FakeApiServer, objects: Objects) -> str:
    """A namespace of its own with these objects."""
    namespace = f"ns-{next(NAMESPACES)}"
    for one in objects.all.values():
        one["metadata"]["namespace"] = namespace
        api.put(one)
    return namespace


def findings(api: FakeApiServer, cluster: Cluster, objects: Objects) -> list[Finding]:
    release = find(cluster, put(api, objects), None)
    return list(look_at_objects(cluster, release, NOW))


def test_healthy_release(api: FakeApiServer, cluster: Cluster) -> None:
    """Nothing but good words for a release that is well, one for each thing looked at."""
    found = findings(api, cluster, Objects())
    assert [one for one in found if one.level is not Level.ok] == []
    assert [one.check for one in found] == [
        "pods",
        "references",
        *["endpoints"] * 4,
        "pvc",
        "rights",
        "network-policy",
        "images",
    ]
    texts = {one.about: one.text for one in found}
    assert texts["endpoints of verifier"] == "2 of 2 are ready"
    assert found[-1].text == "all run version 0.1.0"


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def pending(message: str) -> Callable[[Objects], None]:
    def spoil(o: Objects) -> None:
        status = o.pod("verifier")["status"]
        status["phase"] = "Pending"
        flaw = {"type": "PodScheduled", "status": "False", "message": message}
        status["conditions"] = [flaw]

    return spoil


def image_pull(o: Objects) -> None:
    o.status("drafter")["state"] = waiting("ImagePullBackOff", "back-off pulling")


def crash(exit_code: int, reason: str = "Error", message: str = "") -> Callable[[Objects], None]:
    def spoil(o: Objects) -> None:
        o.status("verifier")["state"] = waiting("CrashLoopBackOff")
        ended = {"exitCode": exit_code, "reason": reason, "message": message}
        o.status("verifier")["lastState"] = {"terminated": ended}

    return spoil


def restarted(count: int, finished: str) -> Callable[[Objects], None]:
    def spoil(o: Objects) -> None:
        ended = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": finished}
        o.status("verifier").update(restartCount=count, lastState={"terminated": ended})

    return spoil


def downloading(since: str) -> Callable[[Objects], None]:
    def spoil(o: Objects) -> None:
        init = {"name": "model", "state": {"running": {"startedAt": since}}}
        o.pod("verifier")["status"]["initContainerStatuses"] = [init]
        o.unready("verifier")

    return spoil


def without_config(tune: str) -> Callable[[Objects], None]:
    """A drafter whose layer plan is not there; and how the Job that makes it is."""

    def spoil(o: Objects) -> None:
        message = 'configmap "chat-plan" not found'
        o.status("drafter")["state"] = waiting("CreateContainerConfigError", message)
        del o.all["ConfigMap", "chat-plan"]
        if tune:
            conditions = [{"type": "Failed", "status": "True", "message": "no GPU"}]
            told = {"conditions": conditions if tune == "failed" else []}
            o.add("Job", "chat-slipstream-tune", "tune", "batch/v1", status=told)

    return spoil


def unmounted(message: str, *, tune: bool) -> Callable[[Objects], None]:
    """A pod whose volumes are not there: the API server tells it as an event alone."""

    def spoil(o: Objects) -> None:
        o.status("drafter")["state"] = waiting("ContainerCreating")
        o.unready("drafter", JUST_NOW)
        about = {"kind": "Pod", "name": "chat-slipstream-drafter-0"}
        for number, text in enumerate(("older", message)):
            told = {"type": "Warning", "message": text, "lastTimestamp": f"2026-06-0{1 + number}"}
            o.add("Event", f"event-{number}", involvedObject=about, **told)
        if tune:
            o.add("Job", "chat-slipstream-tune", "tune", "batch/v1", status={})

    return spoil


def refused(o: Objects) -> None:
    del o.all["Pod", "chat-slipstream-gateway-0"]
    flaw = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    o.workload("gateway")["status"] = {"conditions": [flaw]}


def job(role: str, *conditions: dict[str, Any]) -> Callable[[Objects], None]:
    def spoil(o: Objects) -> None:
        name = f"chat-slipstream-{role}"
        o.add("Job", name, role, "batch/v1", status={"conditions": list(conditions)})

    return spoil


def no_key(o: Objects) -> None:
    del o.all["Secret", "chat-keys"]["data"]["keys"]


def no_secret(o: Objects) -> None:
    del o.all["Secret", "chat-keys"]


def nobody_ready(role: str) -> Callable[[Objects], None]:
    def spoil(o: Objects) -> None:
        for each in o.slice(role)["endpoints"]:
            each["conditions"]["ready"] = False

    return spoil


def no_zone(o: Objects) -> None:
    del o.slice("verifier")["endpoints"][1]["zone"]


def claim(o: Objects) -> None:
    o.all["PersistentVolumeClaim", "models-chat-slipstream-verifier-0"]["status"] = {
        "phase": "Pending"
    }


def no_claim(o: Objects) -> None:
    del o.all["PersistentVolumeClaim", "models-chat-slipstream-verifier-0"]


def open_network(o: Objects) -> None:
    del o.all["NetworkPolicy", "chat-slipstream-verifier"]


def scaler(kind: str, state: str, reason: str) -> Callable[[Objects], None]:
    def spoil(o: Objects) -> None:
        active = {"type": "ScalingActive", "status": "True"}
        flaw = {"type": kind, "status": state, "reason": reason, "message": "no metrics"}
        conditions = [flaw] if kind == "ScalingActive" else [active, flaw]
        found = {"conditions": conditions}
        api = "autoscaling/v2"
        o.add("HorizontalPodAutoscaler", "chat-slipstream-verifier", "verifier", api, status=found)

    return spoil


def other_image(role: str, image: str) -> Callable[[Objects], None]:
    def spoil(o: Objects) -> None:
        o.pod(role)["spec"] = {**o.pod(role)["spec"]}
        container = {**o.pod(role)["spec"]["containers"][0], "image": image}
        o.pod(role)["spec"]["containers"] = [container]

    return spoil


def moved(o: Objects) -> None:
    o.status("verifier")["imageID"] = "sha256:other"


def no_token(o: Objects) -> None:
    o.template("gateway")["automountServiceAccountToken"] = False


def starting(o: Objects) -> None:
    o.unready("verifier", JUST_NOW)


def ending(o: Objects) -> None:
    o.pod("verifier")["metadata"]["deletionTimestamp"] = JUST_NOW


def fewer(o: Objects) -> None:
    o.workload("verifier")["spec"]["replicas"] = 3


FLAWS: list[tuple[str, Level, str, str, Callable[[Objects], None]]] = [
    (check, Level[level], text, do, flaw)
    for check, level, text, do, flaw in [
        ("pods-missing", "problem", "0 of 1 pods exist. exceeded quota", "quota", refused),
        ("pods-fewer", "note", "2 of 3 pods exist so far", "", fewer),
        ("pod-terminating", "note", "about to end", "", ending),
        ("pod-pending", "problem", "Insufficient nvidia.com/gpu", "verifier.gpu.resource",
         pending("0/3 nodes: 3 Insufficient nvidia.com/gpu")),
        ("pod-pending", "problem", "untolerated", "verifier.tolerations",
         pending("2 nodes had untolerated taint {gpu: }")),
        ("pod-pending", "problem", "odd", "kubectl describe pod", pending("something odd")),
        ("image-pull", "problem", "back-off pulling", "pullSecrets", image_pull),
        ("crash-loop", "problem", "exit code 2: cannot read", "a setting cannot be used",
         crash(2, message="line\ncannot read /models")),
        ("crash-loop", "problem", "exit code 1: last line of the log", "--previous", crash(1)),
        ("out-of-memory", "problem", "want of memory", "limits.memory", crash(137, "OOMKilled")),
        ("restarts", "warning", "restarted 1 times, last for OOMKilled", "logs",
         restarted(1, JUST_NOW)),
        ("restarts", "warning", "restarted 5 times", "logs", restarted(5, LONG_AGO)),
        ("init-running", "note", "running for 1 min", "take their time", downloading(JUST_NOW)),
        ("init-stuck", "warning", "running for 240 min", "model.hfToken", downloading(LONG_AGO)),
        ("container-config", "problem", "chat-plan", "create the Secret", without_config("")),
        ("reference-missing", "problem", "does not exist", "create it", without_config("failed")),
        ("waits-for-tune", "note", "that chat-slipstream-tune makes", "logs -f",
         without_config("runs")),
        ("waits-for-tune", "note", "that chat-slipstream-tune makes", "logs -f",
         unmounted('MountVolume.SetUp failed: configmap "chat-plan" not found', tune=True)),
        ("container-config", "problem", "MountVolume.SetUp", "create the Secret",
         unmounted('MountVolume.SetUp failed: secret "chat-tls" not found', tune=False)),
        ("starting", "note", "runs for 1 min", "wait", starting),
        ("not-ready", "warning", "unready", "shards", lambda o: o.unready("drafter")),
        ("job-failed", "problem", "model is not downloaded: gone", "delete the Job",
         job("model-download", {"type": "Failed", "status": "True", "message": "gone"})),
        ("job-running", "note", "layer plan is not found yet", "wait", job("tune")),
        ("reference-missing", "problem", "does not exist", "create it", no_secret),
        ("key-missing", "problem", "has no key keys", "add it", no_key),
        ("no-endpoints", "problem", "nothing is served", "selector", nobody_ready("verifier")),
        ("no-endpoints", "warning", "without its drafts", "drafter", nobody_ready("drafter")),
        ("zones-unknown", "note", "zone of 1 is not known", "topology", no_zone),
        ("pvc-unbound", "problem", "Pending", "StorageClass", claim),
        ("pvc-unbound", "problem", "not there", "StorageClass", no_claim),
        ("no-network-policy", "note", "any pod", "networkPolicy.enabled", open_network),
        ("hpa-metrics", "warning", "no metrics", "metrics-server",
         scaler("ScalingActive", "False", "FailedGetPodsMetric")),
        ("hpa-at-most", "note", "maximum", "maxReplicas",
         scaler("ScalingLimited", "True", "TooManyReplicas")),
        ("hpa", "ok", "metrics are there", "", scaler("AbleToScale", "True", "")),
        ("rollout", "note", "2 images", "rollout", other_image("verifier", "r/v:0.2.0-cpu")),
        ("image-moved", "warning", "2 builds of one tag", "digests", moved),
        ("versions-differ", "warning", "drafter 0.2.0", "image.tag",
         other_image("drafter", "r/d:0.2.0-cuda")),
        ("no-token", "problem", "not mounted", "automountServiceAccountToken", no_token),
    ]
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "level", "text", "do", "flaw"), FLAWS, ids=[f"{f[0]}-{f[2][:12]}" for f in FLAWS]
)
def test_every_flaw_is_found(
    api: FakeApiServer,
    cluster: Cluster,
    check: str,
    level: Level,
    text: str,
    do: str,
    flaw: Callable[[Objects], None],
) -> None:
    """One flaw gives its finding, of its level, with what to do about it."""
    objects = Objects()
    flaw(objects)
    api.doors.logs["chat-slipstream-verifier-0", "verifier", True] = "one\nlast line of the log"
    found = findings(api, cluster, objects)
    [one] = [one for one in found if one.check == check and text in one.text]
    assert one.level is level
    assert do in one.do
    assert bool(one.do) == bool(do)
    # Nothing else is made of it, but for what the same flaw really is in two places.
    worse = {each.check for each in found if each.level in {Level.problem, Level.warning}}
    assert worse - {check} <= {"container-config", "reference-missing", "job-failed"}


def test_images_by_digest(api: FakeApiServer, cluster: Cluster) -> None:
    """Every role has a digest of its own: that says nothing of versions."""
    objects = Objects()
    for number, role in enumerate(("gateway", "verifier", "drafter")):
        for one in objects.all.values():
            if one["kind"] == "Pod" and one["metadata"]["labels"][COMPONENT] == role:
                image = f"r/{role}@sha256:{str(number) * 64}"
                container = {**one["spec"]["containers"][0], "image": image}
                one["spec"] = {**one["spec"], "containers": [container]}
    found = findings(api, cluster, objects)
    assert [one for one in found if one.level is not Level.ok] == []


def test_rights_of_service_accounts(api: FakeApiServer, cluster: Cluster) -> None:
    """A service account that may not watch is named with the rule that it lacks."""
    objects = Objects()
    namespace = put(api, objects)
    user = f"system:serviceaccount:{namespace}:chat-slipstream-gateway"
    api.forbid("watch", "endpointslices", namespace=namespace, user=user)
    found = list(look_at_objects(cluster, find(cluster, namespace, None), NOW))
    [one] = [one for one in found if one.check == "no-right"]
    assert one.about == "gateway's service account chat-slipstream-gateway"
    assert "may not watch endpointslices" in one.text
    assert "verbs [get, list, watch]" in one.do
    [rest] = [one for one in found if one.check == "rights"]
    assert rest.text.startswith("1 service accounts")


def test_rights_that_cannot_be_seen(api: FakeApiServer, cluster: Cluster) -> None:
    """Where reviews are not allowed the doctor says so, and claims nothing."""
    release = find(cluster, put(api, Objects()), None)
    [one] = check_rights(release, lambda account, verb: None)
    assert (one.check, one.level) == ("rights-unseen", Level.note)


def test_secrets_that_may_not_be_read(api: FakeApiServer, cluster: Cluster) -> None:
    """Without the right to get Secrets it is said which were not looked at; that is no problem."""
    namespace = put(api, Objects())
    api.forbid("get", "secrets", namespace=namespace)
    found = list(look_at_objects(cluster, find(cluster, namespace, None), NOW))
    [one] = [one for one in found if one.check == "references-unseen"]
    assert "secret chat-keys" in one.text
    assert not [one for one in found if one.level in {Level.problem, Level.warning}]


def test_which_release(api: FakeApiServer) -> None:
    """One release is found by itself wherever it is; of several, one must be named."""
    with FakeApiServer(namespace="elsewhere") as other:
        cluster = Cluster(other.kubeconfig)
        with pytest.raises(ConfigurationError, match="no release of Slipstream in namespace else"):
            find(cluster, None, None)
        first = put(other, Objects())
        assert (found := find(cluster, None, None)).namespace == first
        assert (found.name, len(found.of("pods"))) == ("chat", 5)
        put(other, Objects("second"))
        with pytest.raises(ConfigurationError, match="more than one release, chat in .* second in"):
            find(cluster, None, None)
        assert find(cluster, None, "second").name == "second"
        with pytest.raises(ConfigurationError, match=f"no release named third .*chat in {first}"):
            find(cluster, first, "third")
        # Another chart's pod of the same release name is not ours.
        stranger = Objects().pod("gateway")
        stranger["metadata"] |= {"name": "stranger", "namespace": first}
        stranger["metadata"]["labels"]["app.kubernetes.io/name"] = "postgres"
        other.put(stranger)
        assert len(find(cluster, first, None).of("pods")) == 5
        other.forbid("list", "pods", namespace=first)
        assert "pods" in find(cluster, first, None).denied
        other.forbid("list", "deployments")
        with pytest.raises(ClusterForbidden, match="list deployments: .*forbidden"):
            find(cluster, first, None)
        cluster.close()
