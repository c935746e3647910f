"""Volumes of a pod as folders, filled as a kubelet fills them."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rendered.manifests import Failed, Manifests, Object

# Sources that are files from objects, alone or as parts of a projected volume.
_FROM_OBJECTS = {"configMap": "ConfigMap", "secret": "Secret"}


@dataclass(frozen=True)
class Mounts:
    """Where a container's mount paths are on this machine; longest first."""

    folders: Mapping[str, Path]

    def under(self, path: str) -> Path | None:
        """The local path of one in the container; None where nothing is mounted."""
        for mount, folder in self.folders.items():
            if path == mount or path.startswith(f"{mount}/"):
                return folder / path[len(mount) :].lstrip("/")
        return None


def content(manifests: Manifests, kind: str, name: str) -> dict[str, bytes] | None:
    """The keys and values of a ConfigMap or Secret; None where it is not there."""
    found = manifests.find(kind, name)
    if found is None:
        return None
    values = {k: base64.b64decode(v) for k, v in (found.get("binaryData") or {}).items()}
    for key, value in (found.get("data") or {}).items():
        values[key] = base64.b64decode(value) if kind == "Secret" else value.encode()
    values |= {key: value.encode() for key, value in (found.get("stringData") or {}).items()}
    return values


class Volumes:
    """All volumes of one pod.

    Args:
        where: the pod, in messages.
        folder: for what goes with the pod.
        claims: for what outlives it: a folder for each PersistentVolumeClaim.
        own_claims: names of those that come with the pod.
        pod: its object, for the downward API.
    """

    def __init__(
        self,
        where: str,
        manifests: Manifests,
        folder: Path,
        claims: Path,
        own_claims: Collection[str],
        pod: Object,
    ) -> None:
        self._where, self._manifests, self._pod = where, manifests, pod
        self._folder, self._claims, self._own_claims = folder, claims, own_claims
        self.folders = {v["name"]: self._made(v) for v in pod["spec"].get("volumes") or []}

    def mounts(self, container: Object) -> Mounts:
        """Raises Failed: the container mounts a volume that the pod has not."""
        found: dict[str, Path] = {}
        for mount in container.get("volumeMounts") or []:
            if mount["name"] not in self.folders:
                raise self._failed(f'{container["name"]} mounts no volume "{mount["name"]}"')
            folder = self.folders[mount["name"]] / mount.get("subPath", "")
            if not folder.exists():
                folder.mkdir(parents=True)
            found[mount["mountPath"].rstrip("/")] = folder
        return Mounts({path: found[path] for path in sorted(found, key=len, reverse=True)})

    def _failed(self, message: str) -> Failed:
        return Failed(self._where, "FailedMount", message)

    def _made(self, volume: Object) -> Path:
        (kind,) = volume.keys() - {"name"}
        source = volume[kind] or {}
        if kind == "persistentVolumeClaim":
            return self._claim(source["claimName"])
        folder = self._folder / volume["name"]
        folder.mkdir(parents=True)
        if kind == "emptyDir":
            return folder
        parts = source["sources"] if kind == "projected" else [{kind: source}]
        for part in parts:
            for path, value in self._files(part):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(value)
        return folder

    def _claim(self, name: str) -> Path:
        rendered = self._manifests.find("PersistentVolumeClaim", name)
        if rendered is None and name not in self._own_claims:
            raise self._failed(f'persistentvolumeclaim "{name}" not found')
        folder = self._claims / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _files(self, part: Object) -> Iterator[tuple[str, bytes]]:
        ((kind, source),) = part.items()
        if kind == "downwardAPI":
            for item in source["items"]:
                yield item["path"], field_of(self._pod, item["fieldRef"]["fieldPath"]).encode()
        elif kind in _FROM_OBJECTS:
            yield from self._of_object(_FROM_OBJECTS[kind], source)
        else:
            raise self._failed(f"volumes of the kind {kind} are not known here")

    def _of_object(self, kind: str, source: Object) -> Iterator[tuple[str, bytes]]:
        # A volume says secretName, the part of a projected one says name.
        name = source.get("secretName") or source.get("name")
        values = content(self._manifests, kind, name)
        if values is None:
            if source.get("optional"):
                return
            raise self._failed(f'{kind.lower()} "{name}" not found')
        items = source.get("items") or [{"key": key, "path": key} for key in values]
        for item in items:
            if item["key"] in values:
                yield item["path"], values[item["key"]]
            elif not source.get("optional"):
                raise self._failed(f'{kind.lower()} "{name}" has no key "{item["key"]}"')


def field_of(pod: Object, path: str) -> str:
    """What the downward API says of a pod: `metadata.labels['x']`, `status.podIP` and the like.

    Raises:
        Failed: there is no such field; an absent label is an empty string, as there.
    """
    name, _, key = path.partition("['")
    found: Any = pod
    for step in name.split("."):
        if not isinstance(found, Mapping) or step not in found:
            raise Failed(
                pod["metadata"]["name"], "CreateContainerConfigError", f"no field {path} in a pod"
            )
        found = found[step]
    return str(found.get(key.removesuffix("']"), "")) if key else str(found)
