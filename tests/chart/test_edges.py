"""What leads into a release and what protects it: routes, certificates, the test, the notes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import CHART, NAMESPACE, RELEASE, merged, refusal, run, template, value_files
from tests.chart.pods import pod_of

ANYONE = {"networkPolicy": {"gatewayFrom": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}}
INGRESS = merged(ANYONE, {"gateway": {"ingress": {"enabled": True, "hosts": ["llm.example.org"]}}})
PARENTS = [{"name": "public"}]


def test_an_ingress_does_not_hold_tokens_back() -> None:
    """nginx is told not to buffer and to bear silence; annotations of one's own go before that."""
    prefix = "nginx.ingress.kubernetes.io"
    (ingress,) = template(INGRESS).of("Ingress")
    told = ingress["metadata"]["annotations"]
    assert told[f"{prefix}/proxy-buffering"] == "off"
    assert int(told[f"{prefix}/proxy-read-timeout"]) >= 600
    own = {"gateway": {"ingress": {"annotations": {f"{prefix}/proxy-read-timeout": "7"}}}}
    (ingress,) = template(merged(INGRESS, own)).of("Ingress")
    assert ingress["metadata"]["annotations"][f"{prefix}/proxy-read-timeout"] == "7"
    other = {"gateway": {"ingress": {"nginx": {"enabled": False}}}}
    (ingress,) = template(merged(INGRESS, other)).of("Ingress")
    assert "annotations" not in ingress["metadata"]


def test_grpc_comes_by_an_ingress_of_its_own() -> None:
    """nginx speaks one protocol to the backends of an Ingress."""
    values = merged(INGRESS, {"gateway": {"ingress": {"grpcHosts": ["grpc.example.org"]}}})
    http, grpc = template(values).of("Ingress")
    for ingress, port in ((http, "http"), (grpc, "grpc")):
        (rule,) = ingress["spec"]["rules"]
        assert {path["backend"]["service"]["port"]["name"] for path in rule["http"]["paths"]} == {
            port
        }
    protocol = "nginx.ingress.kubernetes.io/backend-protocol"
    assert grpc["metadata"]["annotations"][protocol] == "GRPC"


def test_what_is_for_operators_stays_inside() -> None:
    """By default no route leads to /metrics, /ready or /docs."""
    values = merged(INGRESS, {"gateway": {"httpRoute": {"enabled": True, "parentRefs": PARENTS}}})
    render = template(values)
    (ingress,), (route,) = render.of("Ingress"), render.of("HTTPRoute")
    paths = [path["path"] for path in ingress["spec"]["rules"][0]["http"]["paths"]]
    paths += [match["path"]["value"] for match in route["spec"]["rules"][0]["matches"]]
    assert paths == ["/v1", "/v1"]


def test_a_route_gives_streams_their_time() -> None:
    """No bound for a request, nor for a try of it, unless one is given."""
    values = merged(ANYONE, {"gateway": {"httpRoute": {"enabled": True, "parentRefs": PARENTS}}})
    (route,) = template(values).of("HTTPRoute")
    assert route["spec"]["rules"][0]["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    bound = {"gateway": {"httpRoute": {"requestTimeout": "1h", "backendRequestTimeout": "1h"}}}
    (route,) = template(merged(values, bound)).of("HTTPRoute")
    assert route["spec"]["rules"][0]["timeouts"] == {"request": "1h", "backendRequest": "1h"}


@pytest.mark.parametrize("kind", ["httpRoute", "grpcRoute"])
def test_a_route_without_a_gateway_is_refused(kind: str) -> None:
    """It would lead from nowhere."""
    told = refusal(merged(ANYONE, {"gateway": {kind: {"enabled": True}}}))
    assert f"gateway.{kind}.parentRefs names no Gateway" in told


def _certificates(issuer: dict[str, Any]) -> Any:
    manager = {"enabled": True, "issuerRef": issuer}
    return template({"tls": {"enabled": True, "name": "peers", "certManager": manager}})


def test_a_release_has_an_authority_of_its_own() -> None:
    """Self-signed, it signs one certificate, which is what pods mount: good for both sides, and for
    the name that peers ask for."""
    render = _certificates({"name": ""})
    authority = render.get("Certificate", f"{RELEASE}-ca")["spec"]
    leaf = render.get("Certificate", f"{RELEASE}-tls")["spec"]
    signer = render.get("Issuer", leaf["issuerRef"]["name"])
    assert authority["isCA"]
    assert signer["spec"]["ca"]["secretName"] == authority["secretName"]
    assert "selfSigned" in render.get("Issuer", authority["issuerRef"]["name"])["spec"]
    assert {"server auth", "client auth"} <= set(leaf["usages"])
    hosts = {f"{RELEASE}-{role}.{NAMESPACE}.svc" for role in ("gateway", "verifier", "drafter")}
    assert {"peers", *hosts} <= set(leaf["dnsNames"])
    pod = render.get("StatefulSet", f"{RELEASE}-verifier")["spec"]["template"]["spec"]
    mounted = [v["secret"]["secretName"] for v in pod["volumes"] if v["name"] == "tls"]
    assert mounted == [leaf["secretName"]]


def test_keys_are_renewed_but_the_authoritys_is_not() -> None:
    """With another authority pods of before and after would refuse each other."""
    render = _certificates({"name": ""})
    kept, renewed = (render.get("Certificate", f"{RELEASE}-{name}") for name in ("ca", "tls"))
    assert kept["spec"]["privateKey"]["rotationPolicy"] == "Never"
    assert renewed["spec"]["privateKey"]["rotationPolicy"] == "Always"


def test_an_issuer_of_yours_signs_alone() -> None:
    """Where one is given no other is made."""
    render = _certificates({"name": "corporate", "kind": "ClusterIssuer"})
    (leaf,) = render.of("Certificate")
    assert render.of("Issuer") == []
    reference = {"name": "corporate", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    assert leaf["spec"]["issuerRef"] == reference


def test_the_test_asks_for_what_the_release_has() -> None:
    """The gateway's Service at its port, the key that is made, and drafts only of a drafter."""
    values = {"gateway": {"service": {"httpPort": 80}}}
    (pod,) = template(values).of("Pod")
    (container,) = pod["spec"]["containers"]
    assert f"http://{RELEASE}-gateway:80" in container["args"]
    assert "--expect-drafts" in container["args"]
    (key,) = (env for env in container["env"] if env["name"] == "SLIPSTREAM_API_KEY")
    reference = key["valueFrom"]["secretKeyRef"]
    assert reference["key"] in template(values).get("Secret", reference["name"])["data"]
    for none in ({"enabled": False}, {"replicas": 0}):
        (pod,) = template({"drafter": none}).of("Pod")
        assert "--expect-drafts" not in pod["spec"]["containers"][0]["args"]
    assert template({"tests": {"enabled": False}}).of("Pod") == []


@pytest.mark.parametrize(("bind", "asked"), [("0.0.0.0", []), ("::", ["-h", "::1"])])
def test_redis_is_probed_where_it_listens(bind: str, asked: list[str]) -> None:
    """Bound to :: Redis takes IPv6 alone, and by itself redis-cli asks 127.0.0.1."""
    main = pod_of(template({"bindAddress": bind}), "redis").main
    for kind in ("startup", "liveness", "readiness"):
        command = main[f"{kind}Probe"]["exec"]["command"]
        assert command[:2] + asked + ["-p"] == command[: 3 + len(asked)]


def test_labels_of_the_test_pod_are_each_there_once() -> None:
    """Its own go before those of all: a key that is there twice is no YAML for strict readers."""
    values = {"commonLabels": {"team": "a"}, "tests": {"podLabels": {"team": "b"}}}
    render = template(values)
    (pod,) = render.of("Pod")
    assert pod["metadata"]["labels"]["team"] == "b"
    (text,) = (part for part in render.text.split("\n---\n") if "\nkind: Pod\n" in part)
    assert text.count("team:") == 1


def _notes(name: str) -> str:
    told = run(
        "install", RELEASE, CHART, f"--namespace={NAMESPACE}", "--dry-run=client",
        f"--values={value_files()[name]}",
    )  # fmt: skip
    return told.split("\nNOTES:\n", 1)[1]


def test_the_notes_say_what_comes_next() -> None:
    """Where the key is, a first request, the test and the doctor; and what a trial is not."""
    notes = _notes("cpu-trial")
    for part in (
        f"get secret {RELEASE}-api-keys -o jsonpath='{{.data.api-key}}'",
        f"port-forward service/{RELEASE}-gateway 8000:8000",
        '"model": "smollm2-135m-instruct"',
        f"helm -n {NAMESPACE} test {RELEASE}",
        f"slipstream k8s doctor --namespace {NAMESPACE} --release {RELEASE}",
        "The bundled Redis is one pod without persistence",
        "One verifier",
        "Each pod fetches the model at each start",
    ):
        assert part in notes, part


def test_the_notes_do_not_warn_of_what_is_mended() -> None:
    """Of production's warnings only the revision is left, which the user has to choose."""
    warnings = _notes("ha").split("To know:\n", 1)[1].strip().splitlines()
    assert len(warnings) == 1
    assert "no revision" in warnings[0]


def test_objects_of_ones_own_are_templates() -> None:
    """extraObjects are rendered with the release, and may name what is its own."""
    more = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "{{ .Release.Name }}-more"},
        "data": {"verifiers": "{{ .Values.verifier.replicas }}"},
    }
    found = template({"extraObjects": [more]}).of("ConfigMap")
    (own,) = (each for each in found if each["metadata"]["name"] == f"{RELEASE}-more")
    assert own["data"] == {"verifiers": "1"}


def test_a_gpu_by_a_claim() -> None:
    """With gpu.claimTemplate the pod has the claim, and the container that computes uses it, with
    the image and the device of a GPU; asking for it in both ways is refused."""
    claim = {"drafter": {"gpu": {"claimTemplate": "half-a-card"}}}
    pods = {each["metadata"]["name"]: each for each in template(claim).of("StatefulSet")}
    spec = pods[f"{RELEASE}-drafter"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "half-a-card"}]
    assert container["resources"]["claims"] == [{"name": "gpu"}]
    assert "--device=cuda" in container["args"]
    assert container["image"].endswith("-cuda")
    assert not any(arg.startswith("--threads") for arg in container["args"])
    both = merged(claim, {"drafter": {"gpu": {"count": 1}}})
    assert "drafter.gpu.claimTemplate and drafter.gpu.count" in refusal(both)
