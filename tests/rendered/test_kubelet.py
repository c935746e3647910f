"""The kubelet of these tests, over releases of stubs: what it promises must hold by itself."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.rendered.api import ReleaseApi
from tests.rendered.cluster import Cluster
from tests.rendered.container import Pace
from tests.rendered.environment import EnvironmentReader, expand, service_links
from tests.rendered.handmade import NAMESPACE, release
from tests.rendered.manifests import Failed, Manifests
from tests.rendered.network import Network
from tests.rendered.translation import Names, Translation
from tests.rendered.volumes import Mounts, Volumes, field_of

_QUICK = Pace(speed=20.0, patience=0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--peer=$(HOST):$(PORT)", "--peer=h:1"),
        ("$$(HOST)", "$(HOST)"),
        ("$(UNKNOWN) $HOST $", "$(UNKNOWN) $HOST $"),
        ("$$$(HOST)", "$h"),
    ],
)
def test_references_expand_as_in_kubernetes(text: str, expected: str) -> None:
    """$(NAME) is replaced, $$ escapes, and what is not known stays."""
    assert expand(text, {"HOST": "h", "PORT": "1"}) == expected


def test_a_later_variable_is_unknown_to_an_earlier_one() -> None:
    """Kubernetes would hand "$(B)" on; here it is a failure that names the variable."""
    pod = {"metadata": {"name": "p"}, "spec": {"enableServiceLinks": False}}
    env = [{"name": "A", "value": "$(B)"}, {"name": "B", "value": "1"}]
    with pytest.raises(Failed, match="refers to B"):
        EnvironmentReader(release(), pod).of({"name": "c", "env": env})


def test_env_from_is_overridden_by_env() -> None:
    """envFrom comes first, with its prefix; an optional source may be missing, another may not."""
    reader = EnvironmentReader(release(), {"metadata": {"name": "p"}, "spec": {}})
    both = [{"secretRef": {"name": "keys"}}, {"configMapRef": {"name": "no", "optional": True}}]
    container = {"name": "c", "envFrom": both, "env": [{"name": "X", "value": "$(password)"}]}
    assert reader.of(container)["X"] == "s3cret"
    assert reader.of({**container, "env": [{"name": "password", "value": "p"}]})["password"] == "p"
    with pytest.raises(Failed, match='configmap "no" not found'):
        reader.of({"name": "c", "envFrom": [{"configMapRef": {"name": "no"}}]})


def test_services_with_an_address_are_told_of_in_the_environment() -> None:
    """As Docker's links; headless ones are not."""
    links = service_links(release().of("Service"))
    assert links["WEB_SERVICE_PORT_HTTP"] == "80"
    assert links["WEB_PORT_80_TCP"].startswith("tcp://")
    assert not any(name.startswith("RANKS") for name in links)


def test_volumes_are_filled_from_objects(tmp_path: Path) -> None:
    """ConfigMaps, Secrets with renamed keys, projected parts, the downward API, claims."""
    parts = [
        {"secret": {"name": "keys", "items": [{"key": "password", "path": "a/b"}]}},
        {"configMap": {"name": "words"}},
        {"downwardAPI": {"items": [{"path": "me", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]
    pod = {
        "metadata": {"name": "p", "labels": {}},
        "spec": {
            "volumes": [
                {"name": "all", "projected": {"sources": parts}},
                {"name": "kept", "persistentVolumeClaim": {"claimName": "kept-p"}},
            ]
        },
    }
    made = Volumes("p", release(), tmp_path / "p", tmp_path / "claims", {"kept-p"}, pod)
    assert (made.folders["all"] / "a" / "b").read_text() == "s3cret"
    assert (made.folders["all"] / "greeting").read_text() == "hello"
    assert (made.folders["all"] / "me").read_text() == "p"
    assert made.folders["kept"] == tmp_path / "claims" / "kept-p"
    with pytest.raises(Failed, match='persistentvolumeclaim "kept-p" not found'):
        Volumes("p", release(), tmp_path / "q", tmp_path / "claims", (), pod)


def test_the_downward_api_knows_labels_and_refuses_other_fields() -> None:
    """A label that is absent is empty, a field that no pod has is an error."""
    pod = {"metadata": {"name": "p", "labels": {"a/b": "1"}}, "status": {"podIP": "127.1.2.3"}}
    assert field_of(pod, "metadata.labels['a/b']") == "1"
    assert field_of(pod, "metadata.labels['c']") == ""
    assert field_of(pod, "status.podIP") == "127.1.2.3"
    with pytest.raises(Failed, match="no field"):
        field_of(pod, "status.podIp")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--listen=0.0.0.0:50051", "--listen=IP:50051"),
        ("--drafter=k8s:///f-drafter:50052", "--drafter=k8s:///f-drafter:50052"),
        ("f-drafter-{}.f-drafter.ns.svc:50052", "127.9.9.1{}:50052"),
        ("redis://:p@f-redis:6379/0", "redis://:p@127.9.9.20:6379/0"),
        ("http://f-gateway.ns.svc.cluster.local:80/v1", "http://127.9.9.201:8000/v1"),
        ("--configmap=f-redis", "--configmap=f-redis"),
        ("other-f-redis:6379", "other-f-redis:6379"),
        ("--model=/models/m,/cache:/modelsx", "--model=DIR/m/m,DIR/c:/modelsx"),
        ("http://host/models", "http://host/models"),
        ("10.0.0.0.0", "10.0.0.0.0"),
        ("--http=127.0.0.1:8000", "--http=127.0.0.1:8000"),
    ],
)
def test_translation(text: str, expected: str) -> None:
    """Addresses, names and paths become local ones, at their borders, once; nothing else does."""
    names = Names()
    names.add("f-drafter-{}.f-drafter", "ns", "127.9.9.1{}")
    names.add("f-redis", "ns", "127.9.9.20")
    names.add("f-gateway", "ns", "127.9.9.201", port=80, to=8000)
    mounts = Mounts({"/models": Path("DIR/m"), "/cache": Path("DIR/c")})
    assert Translation("p/c", "IP", mounts, names).text(text) == expected


def test_a_path_that_no_volume_covers_is_refused() -> None:
    """In arguments and in the environment: the root filesystem is read-only."""
    translation = Translation("p/c", "IP", Mounts({"/models": Path("m")}), Names())
    with pytest.raises(Failed, match="/cache/x") as failed:
        translation.command(["python", "--to=/cache/x"])
    assert failed.value.reason == "ReadOnlyFileSystem"
    with pytest.raises(Failed, match="/cache"):
        translation.environment({"SLIPSTREAM_CACHE": "/cache"})


def test_networks_of_two_runs_do_not_meet() -> None:
    """Each has addresses of its own, and an ordinal's address is the pattern's."""
    one, two = Network.take(), Network.take()
    try:
        assert one.prefix != two.prefix
        assert one.of_ordinal("s", 3) == one.pattern("s").replace("{}", "3")
        assert one.pattern("s") != one.pattern("t")
        assert one.other() != one.other()
    finally:
        one.close()
        two.close()


async def _get(cluster: Cluster, pod: str, path: str) -> str:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        return (await client.get(f"http://{cluster.pod(pod).ip}:8000{path}")).text


async def test_the_life_of_a_release(tmp_path: Path) -> None:
    """Init containers, environment and files arrive; endpoints follow readiness and termination; a
    rollout keeps ordinals and brings a Deployment's successor first; all end with 0."""
    manifests = release()
    api = ReleaseApi(manifests)
    cluster = Cluster(manifests, tmp_path, api, _QUICK)
    try:
        await cluster.start(60)
        (web,), ranks = cluster.of("web"), cluster.of("ranks")
        assert await _get(cluster, web.name, "/file/made") == "by init"
        store = await _get(cluster, web.name, "/env/STORE")
        assert store == f"redis://:s3cret@{ranks[0].ip}:8000/$(x)"
        assert await _get(cluster, web.name, "/env/POD_IP") == web.ip
        assert await _get(cluster, web.name, "/env/KUBECONFIG")
        assert not await _get(cluster, "ranks-1", "/env/KUBECONFIG")
        assert await _get(cluster, "ranks-1", "/env/POD_INDEX") == "1"
        following = await _get(cluster, "ranks-1", "/env/NEXT")
        assert following.format(1) == f"{cluster.pod('ranks-1').ip}:8000"
        conf = await _get(cluster, "ranks-1", "/file/server.conf")
        assert conf == f"bind {cluster.pod('ranks-1').ip}\ndir {tmp_path}/claims/data-ranks-1\n"

        api.kubeconfig("reader")
        double = api.accounts["reader"]

        def conditions(service: str) -> dict[str, dict[str, bool]]:
            found = double.get("EndpointSlice", NAMESPACE, f"{service}-local")
            assert found is not None
            return {e["targetRef"]["name"]: e["conditions"] for e in found["endpoints"]}

        usual = {"ready": True, "serving": True, "terminating": False}
        assert conditions("ranks") == {"ranks-0": usual, "ranks-1": usual}
        ended = await cluster.roll(web, 60)
        assert ended.codes == {"web": 0}
        assert 0.55 <= ended.seconds < ended.grace, "preStop, and then the stub's half second"
        assert web.main.history == [("started", True), ("ready", True), ("ready", False)]
        (new,) = cluster.of("web")
        assert conditions("web") == {new.name: usual}
        assert new.ip != web.ip
        seen = [c.after for c in double.objects.history if c.after]
        states = [
            tuple(end["conditions"][key] for key in ("ready", "serving", "terminating"))
            for item in seen
            for end in item["endpoints"]
            if end["targetRef"]["name"] == web.name
        ]
        assert (False, True, True) in states, "it drains"
        assert (False, False, True) in states, "its readiness went red before it ended"

        address = ranks[1].ip
        assert (await cluster.roll(ranks[1], 60)).codes == {"rank": 0}
        assert cluster.pod("ranks-1").ip == address
        assert all(
            end.codes in ({"web": 0}, {"rank": 0}) for end in (await cluster.stop()).values()
        )
        assert conditions("ranks") == {}
        assert cluster.failures() == []
    finally:
        await cluster.close()
        api.close()


def _changed(path: str, value: object) -> Manifests:
    """The release with one place of a container changed: WORKLOAD.field.field..."""
    manifests = release()
    workload, *steps, last = path.split(".")
    owner = next(o for o in manifests.workloads if o["metadata"]["name"] == workload)
    place = owner["spec"]["template"]["spec"]["containers"][0]
    for step in steps:
        place = place[int(step)] if step.isdigit() else place[step]
    place[int(last) if last.isdigit() else last] = value
    return manifests


@pytest.mark.parametrize(
    ("path", "value", "reason", "message"),
    [
        ("web.args.1", "eight", "Error", "ValueError"),
        ("web.args.1", "8001", "Unhealthy", r"the container listens on \[8001\]"),
        ("web.args.0", "192.0.2.9", "Error", "Cannot assign requested address"),
        ("web.startupProbe.httpGet.path", "/healthz", "Unhealthy", "404"),
        ("web.startupProbe.httpGet.port", "web", "Unhealthy", 'no port "web"'),
        ("web.volumeMounts.0.name", "nothing", "FailedMount", 'no volume "nothing"'),
        ("web.volumeMounts.0.mountPath", "/elsewhere", "ReadOnlyFileSystem", "/files"),
        ("web.env.1.valueFrom.secretKeyRef.key", "pass", "CreateContainerConfigError", '"pass"'),
        ("web.env.1.name", "PASS", "CreateContainerConfigError", "refers to PASSWORD"),
        ("web.command.0", "node", "StartError", "executable file not found"),
        ("ranks.readinessProbe.tcpSocket.port", 8002, "Unhealthy", "port 8002"),
        ("ranks.readinessProbe", {"grpc": {"port": 8002}}, "Unhealthy", r"listens on \[8000\]"),
    ],
)
async def test_a_wrong_release_fails_in_kubernetes_words(
    tmp_path: Path, path: str, value: object, reason: str, message: str
) -> None:
    """Each planted error is found, soon, and named."""
    manifests = _changed(path, value)
    cluster = Cluster(manifests, tmp_path, pace=_QUICK)
    try:
        with pytest.raises(Failed, match=message) as failed:
            await cluster.start(60, only=[path.partition(".")[0]])
        assert failed.value.reason == reason
    finally:
        await cluster.close()


async def test_a_container_that_outlives_its_grace_is_killed(tmp_path: Path) -> None:
    """It has no exit code, and a container that ends by itself is a failure."""
    manifests = _changed("ranks.env.0", {"name": "STUBBORN", "value": "yes"})
    manifests.get("StatefulSet", "ranks")["spec"]["replicas"] = 1
    template = manifests.get("StatefulSet", "ranks")["spec"]["template"]
    template["spec"]["terminationGracePeriodSeconds"] = 1
    cluster = Cluster(manifests, tmp_path, pace=_QUICK)
    try:
        await cluster.start(60, only=["ranks"])
        (ended,) = (await cluster.stop()).values()
        assert ended.codes == {"rank": None}
    finally:
        await cluster.close()
