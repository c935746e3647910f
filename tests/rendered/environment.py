"""A container's environment and arguments, put together as a kubelet does it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.rendered.manifests import Failed, Manifests, Object
from tests.rendered.volumes import content, field_of

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][\w.-]*)\)")
_KINDS = {"configMapKeyRef": "ConfigMap", "secretKeyRef": "Secret"}


def expand(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` becomes its value, `$$` a `$`; a name that is not known stays as it stands."""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return values.get(match[1], match[0])

    return _REFERENCE.sub(one, text)


@dataclass(frozen=True)
class EnvironmentReader:
    """Reads `env` and `envFrom` of a pod's containers.

    Attributes:
        pod: the pod's object, with its status, for the downward API.
    """

    manifests: Manifests
    pod: Object

    def of(self, container: Object) -> dict[str, str]:
        """Variables of the Services first, then envFrom, then env in its order.

        Raises:
            Failed: a Secret, ConfigMap or key that is not optional is not there.
        """
        values: dict[str, str] = {}
        if self.pod["spec"].get("enableServiceLinks", True):
            values |= service_links(self.manifests.of("Service"))
        for source in container.get("envFrom") or []:
            values |= self._whole(container, source)
        for entry in container.get("env") or []:
            if "valueFrom" not in entry:
                # Later ones may refer to earlier ones, not the other way round.
                values[entry["name"]] = self._expanded(container, entry.get("value", ""), values)
                continue
            found = self._value(container, entry["valueFrom"])
            if found is not None:
                values[entry["name"]] = found
        return values

    def command(self, container: Object, values: Mapping[str, str]) -> list[str]:
        """`command` and `args`, expanded. Raises Failed: a word refers to nothing."""
        if not container.get("command"):
            raise self._failed(container, "the entry point of an image is not known here")
        words = [*container["command"], *(container.get("args") or [])]
        return [self._expanded(container, word, values) for word in words]

    def _expanded(self, container: Object, text: str, values: Mapping[str, str]) -> str:
        """Kubernetes hands a `$(NAME)` that nothing defines on as it stands; nobody wants that."""
        for name in _REFERENCE.findall(text):
            if name and name not in values:
                message = f"{text!r} refers to {name}, which is no variable of the container"
                raise self._failed(container, message)
        return expand(text, values)

    def _failed(self, container: Object, message: str) -> Failed:
        where = f"{self.pod['metadata']['name']}/{container['name']}"
        return Failed(where, "CreateContainerConfigError", message)

    def _whole(self, container: Object, source: Object) -> dict[str, str]:
        kind, name = (
            ("Secret", "secretRef") if "secretRef" in source else ("ConfigMap", "configMapRef")
        )
        reference = source[name]
        values = content(self.manifests, kind, reference["name"])
        if values is None:
            if reference.get("optional"):
                return {}
            raise self._failed(container, f'{kind.lower()} "{reference["name"]}" not found')
        return {source.get("prefix", "") + key: value.decode() for key, value in values.items()}

    def _value(self, container: Object, source: Object) -> str | None:
        if "fieldRef" in source:
            return field_of(self.pod, source["fieldRef"]["fieldPath"])
        ((kind, reference),) = source.items()
        if kind not in _KINDS:
            raise self._failed(container, f"env from {kind} is not known here")
        values = content(self.manifests, _KINDS[kind], reference["name"])
        what = f'{_KINDS[kind].lower()} "{reference["name"]}"'
        if values is not None and reference["key"] in values:
            return values[reference["key"]].decode()
        if reference.get("optional"):
            return None
        missing = "not found" if values is None else f'has no key "{reference["key"]}"'
        raise self._failed(container, f"{what} {missing}")


def service_links(services: Iterable[Object]) -> dict[str, str]:
    """What every container is told of the Services of its namespace that have an address, in the
    variables of Docker's links. The address itself is none of a real cluster."""
    values: dict[str, str] = {}
    for service in services:
        spec = service["spec"]
        if spec.get("clusterIP") == "None":
            continue
        name = service["metadata"]["name"].upper().replace("-", "_")
        first = spec["ports"][0]
        values[f"{name}_SERVICE_HOST"] = "192.0.2.1"
        values[f"{name}_SERVICE_PORT"] = str(first["port"])
        values[f"{name}_PORT"] = f"tcp://192.0.2.1:{first['port']}"
        for port in spec["ports"]:
            number, protocol = str(port["port"]), port.get("protocol", "TCP")
            if port.get("name"):
                key = port["name"].upper().replace("-", "_")
                values[f"{name}_SERVICE_PORT_{key}"] = number
            link = f"{name}_PORT_{number}_{protocol}"
            values[link] = f"{protocol.lower()}://192.0.2.1:{number}"
            values[f"{link}_PROTO"], values[f"{link}_PORT"] = protocol.lower(), number
            values[f"{link}_ADDR"] = "192.0.2.1"
    return values
