"""Whether what pods mount and read is there: volumes, claims, Secrets, ConfigMaps, their keys."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.chart.helm import RELEASE, Object, Render, name_of, parse, value_files
from tests.chart.pods import Pod, pods

# Objects that others give: the tests' values name them like this, ready value files as they want.
EXTERNAL = "given-"


def _named_in(value: Any) -> Iterator[str]:
    """What values call existing."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key.startswith("existing") and inner:
                yield inner
            else:
                yield from _named_in(inner)


@functools.cache
def external() -> frozenset[str]:
    files = value_files().values()
    return frozenset(name for path in files for name in _named_in(parse(path.read_text())[0]))


def _volumes(pod: Pod) -> set[str]:
    names = {volume["name"] for volume in pod.spec.get("volumes", [])}
    claims = pod.owner["spec"].get("volumeClaimTemplates", [])
    return names | {claim["metadata"]["name"] for claim in claims}


def volumes_are_there_and_used(render: Render) -> Iterator[str]:
    for pod in pods(render):
        there, used = _volumes(pod), set()
        for container in pod.every_container:
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            if len(set(paths)) != len(paths):
                yield f"{pod.name}.{container['name']}: two volumes at one path of {paths}"
            used |= {mount["name"] for mount in container.get("volumeMounts", [])}
        if used - there:
            yield f"{pod.name}: no volume {sorted(used - there)}"
        if there - used:
            yield f"{pod.name}: nobody mounts {sorted(there - used)}"


def _references(pod: Pod) -> Iterator[tuple[str, str, str]]:
    """(kind, name, key or "") of everything that a pod needs from other objects."""
    for container in pod.every_container:
        for entry in container.get("env", []):
            source = entry.get("valueFrom", {})
            for kind, field in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
                if field in source and not source[field].get("optional"):
                    yield kind, source[field]["name"], source[field]["key"]
    for volume in pod.spec.get("volumes", []):
        sources = [volume, *volume.get("projected", {}).get("sources", [])]
        for source in sources:
            secret, config = source.get("secret"), source.get("configMap")
            if secret:
                name = secret.get("secretName") or secret["name"]
                yield from _keys("Secret", name, secret)
            if config:
                yield from _keys("ConfigMap", config["name"], config)
            if "persistentVolumeClaim" in source:
                yield "PersistentVolumeClaim", source["persistentVolumeClaim"]["claimName"], ""


def _keys(kind: str, name: str, source: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    if not source.get("optional"):
        yield kind, name, ""
        for entry in source.get("items", []):
            yield kind, name, entry["key"]


def _given(render: Render) -> dict[tuple[str, str], set[str]]:
    """Objects that the release makes, with their keys."""
    made: dict[tuple[str, str], set[str]] = {}
    for item in render.of("Secret", "ConfigMap", "PersistentVolumeClaim"):
        keys = {*item.get("data", {}), *item.get("stringData", {}), *item.get("binaryData", {})}
        made[item["kind"], item["metadata"]["name"]] = keys
    for item in render.of("Certificate"):
        made["Secret", item["spec"]["secretName"]] = {"tls.crt", "tls.key", "ca.crt"}
    return made


# Made while the release runs, by the tune Job.
_MADE_LATER = re.compile(rf"ConfigMap {RELEASE}[a-z-]*plan-[0-9a-f]{{8}}")


def references_lead_somewhere(render: Render) -> Iterator[str]:
    made = _given(render)
    for pod in pods(render):
        for kind, name, key in _references(pod):
            if name.startswith(EXTERNAL) or _MADE_LATER.fullmatch(f"{kind} {name}"):
                continue
            if (kind, name) not in made and name in external():
                continue
            if (kind, name) not in made:
                yield f"{pod.name}: needs {kind} {name}, which no one makes"
            elif key and key not in made[kind, name]:
                yield f"{pod.name}: needs {key} of {kind} {name}"


def _is_release_object(item: Object) -> bool:
    return "helm.sh/hook" not in item["metadata"].get("annotations", {})


def what_the_release_makes_is_used(render: Render) -> Iterator[str]:
    used = {(kind, name) for pod in pods(render) for kind, name, _ in _references(pod)}
    for item in filter(_is_release_object, render.of("Secret", "PersistentVolumeClaim")):
        if (item["kind"], item["metadata"]["name"]) not in used:
            yield f"{name_of(item)}: no pod uses it"


def pods_restart_for_their_config(render: Render) -> Iterator[str]:
    """A pod that mounts a ConfigMap or Secret of the release carries its checksum: an upgrade that
    changes one rolls the pods."""
    made = {(item["kind"], item["metadata"]["name"]) for item in render.of("ConfigMap")}
    for pod in pods(render):
        wants = {(kind, name) for kind, name, _ in _references(pod)} & made
        annotations = pod.metadata.get("annotations", {})
        sums = [key for key in annotations if key.startswith("checksum/")]
        if pod.serves and wants and not sums:
            yield f"{pod.name}: no checksum of {sorted(wants)}"


POLICIES = (
    volumes_are_there_and_used,
    references_lead_somewhere,
    what_the_release_makes_is_used,
    pods_restart_for_their_config,
)
