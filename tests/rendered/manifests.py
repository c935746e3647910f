"""What a release consists of: the objects that helm rendered, looked up by kind and name."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

Object = dict[str, Any]


class Failed(Exception):
    """The release does not run, for a reason that Kubernetes would show, in its word for it.

    Attributes:
        reason: FailedCreate, FailedMount, CreateContainerConfigError, StartError, Init:Error,
            Error, Unhealthy, FailedPreStopHook, DeadlineExceeded; and of what Kubernetes would not
            tell: NoEndpoints, NoSuchService, NoSuchPort, PortClosed, UnknownSetting,
            ReadOnlyFileSystem.
    """

    def __init__(self, where: str, reason: str, message: str) -> None:
        super().__init__(f"{where}: {reason}: {message}")
        self.where, self.reason, self.message = where, reason, message


@dataclass(frozen=True)
class Manifests:
    """The objects of one release in one namespace."""

    namespace: str
    objects: tuple[Object, ...]

    @classmethod
    def of_text(cls, namespace: str, text: str) -> Manifests:
        return cls(namespace, tuple(item for item in yaml.safe_load_all(text) if item))

    def copy(self) -> Manifests:
        """One whose objects can be changed."""
        return Manifests(self.namespace, copy.deepcopy(self.objects))

    def of(self, *kinds: str) -> list[Object]:
        return [item for item in self.objects if item["kind"] in kinds]

    def find(self, kind: str, name: str) -> Object | None:
        return next((o for o in self.of(kind) if o["metadata"]["name"] == name), None)

    def get(self, kind: str, name: str) -> Object:
        found = self.find(kind, name)
        assert found is not None, f"no {kind} {name} was rendered"
        return found

    def hooks(self, event: str) -> list[Object]:
        """The objects that helm makes at `event` only, such as `test`."""
        return [item for item in self.objects if event in _hook(item)]

    @property
    def workloads(self) -> list[Object]:
        return [o for o in self.of("Deployment", "StatefulSet") if not _hook(o)]

    def job(self, component: str) -> Object:
        """The only Job of a component."""
        label = "app.kubernetes.io/component"
        (found,) = (o for o in self.of("Job") if o["metadata"]["labels"][label] == component)
        return found


def _hook(item: Object) -> list[str]:
    notes = item["metadata"].get("annotations") or {}
    return [event.strip() for event in notes.get("helm.sh/hook", "").split(",") if event]


def selects(selector: Mapping[str, str] | None, labels: Mapping[str, str]) -> bool:
    """Whether a Service's selector (or matchLabels) means a pod; without a selector: no."""
    return bool(selector) and all(labels.get(k) == v for k, v in (selector or {}).items())


def names(items: Iterable[Object]) -> list[str]:
    return [item["metadata"]["name"] for item in items]
