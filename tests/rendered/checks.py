"""What an API server would refuse, and names that lead nowhere, which nobody would ever tell."""

from __future__ import annotations

import re
from collections.abc import Iterator

from drafter_service.settings import Settings as DrafterSettings
from gateway.settings import Settings as GatewaySettings
from tests.rendered.manifests import Failed, Manifests, Object, selects
from tests.rendered.network import target_port
from verifier_service.settings import Settings as VerifierSettings

_DISCOVERY = re.compile(r"k8s://(?P<namespace>[^/\s,]*)/(?P<service>[^:/\s,]+)(?::(?P<port>\w+))?")
# Settings that are no option of a service.
_OTHERS = {"SLIPSTREAM_CACHE", "SLIPSTREAM_API_KEY"}


def check(manifests: Manifests) -> None:
    """Raises Failed: for the first thing that is wrong."""
    for owner in manifests.workloads:
        _check_workload(manifests, owner)
    for job in manifests.of("Job"):
        _check_account(manifests, job)
    for service in manifests.of("Service"):
        _check_service(manifests, service)
    known = _OTHERS | set(_settings())
    for name, spec in _pods(manifests):
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            where = f"{name}/{container['name']}"
            for word in container.get("args") or []:
                _check_discovery(manifests, where, word)
            for entry in container.get("env") or []:
                if entry["name"].startswith("SLIPSTREAM_") and entry["name"] not in known:
                    message = f"{entry['name']} is no setting of any service"
                    raise Failed(where, "UnknownSetting", message)


def _pods(manifests: Manifests) -> Iterator[tuple[str, Object]]:
    for owner in (*manifests.workloads, *manifests.of("Job")):
        yield owner["metadata"]["name"], owner["spec"]["template"]["spec"]
    for pod in manifests.of("Pod"):
        yield pod["metadata"]["name"], pod["spec"]


def _settings() -> Iterator[str]:
    for settings in (GatewaySettings, VerifierSettings, DrafterSettings):
        prefix = settings.model_config["env_prefix"]
        yield from (f"{prefix}{name}".upper() for name in settings.model_fields)


def _check_workload(manifests: Manifests, owner: Object) -> None:
    name, template = owner["metadata"]["name"], owner["spec"]["template"]
    if not selects(owner["spec"]["selector"]["matchLabels"], template["metadata"]["labels"]):
        raise Failed(name, "FailedCreate", "`selector` does not match template `labels`")
    _check_account(manifests, owner)
    service = owner["spec"].get("serviceName")
    if service and manifests.find("Service", service) is None:
        raise Failed(name, "FailedCreate", f'service "{service}" not found')


def _check_account(manifests: Manifests, owner: Object) -> None:
    account = owner["spec"]["template"]["spec"].get("serviceAccountName", "default")
    if account != "default" and manifests.find("ServiceAccount", account) is None:
        message = f'serviceaccount "{account}" not found'
        raise Failed(owner["metadata"]["name"], "FailedCreate", message)


def _check_service(manifests: Manifests, service: Object) -> None:
    name, selector = service["metadata"]["name"], service["spec"].get("selector")
    templates = [owner["spec"]["template"] for owner in manifests.workloads]
    behind = [each for each in templates if selects(selector, each["metadata"]["labels"])]
    if not behind:
        raise Failed(name, "NoEndpoints", f"{selector} selects no pods")
    for port in service["spec"]["ports"]:
        target_port(name, port, behind[0])


def _check_discovery(manifests: Manifests, where: str, word: str) -> None:
    """A list of peers names Services, and ports of the pods behind them."""
    for match in _DISCOVERY.finditer(word):
        service = manifests.find("Service", match["service"])
        if service is None or match["namespace"] not in ("", manifests.namespace):
            raise Failed(where, "NoSuchService", f"{word} names no Service of the release")
        ports = service["spec"]["ports"]
        there = {str(port[key]) for port in ports for key in ("name", "port") if key in port}
        if match["port"] and match["port"] not in there:
            raise Failed(where, "NoSuchPort", f"{word}: the Service has the ports {sorted(there)}")
