"""What a `FakeApiServer` holds: objects, their versions, what changed, and who may do what."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str, str]
# Plural, kind, API version, whether it lives in a namespace.
_KINDS = (
    ("configmaps", "ConfigMap", "v1", True),
    ("endpoints", "Endpoints", "v1", True),
    ("events", "Event", "v1", True),
    ("namespaces", "Namespace", "v1", False),
    ("nodes", "Node", "v1", False),
    ("persistentvolumeclaims", "PersistentVolumeClaim", "v1", True),
    ("pods", "Pod", "v1", True),
    ("secrets", "Secret", "v1", True),
    ("serviceaccounts", "ServiceAccount", "v1", True),
    ("services", "Service", "v1", True),
    ("daemonsets", "DaemonSet", "apps/v1", True),
    ("deployments", "Deployment", "apps/v1", True),
    ("replicasets", "ReplicaSet", "apps/v1", True),
    ("statefulsets", "StatefulSet", "apps/v1", True),
    ("horizontalpodautoscalers", "HorizontalPodAutoscaler", "autoscaling/v2", True),
    ("jobs", "Job", "batch/v1", True),
    ("endpointslices", "EndpointSlice", "discovery.k8s.io/v1", True),
    ("ingresses", "Ingress", "networking.k8s.io/v1", True),
    ("networkpolicies", "NetworkPolicy", "networking.k8s.io/v1", True),
    ("poddisruptionbudgets", "PodDisruptionBudget", "policy/v1", True),
    ("rolebindings", "RoleBinding", "rbac.authorization.k8s.io/v1", True),
    ("roles", "Role", "rbac.authorization.k8s.io/v1", True),
)


@dataclass(frozen=True, slots=True)
class Resource:
    """A type of objects, as API paths name it."""

    plural: str
    kind: str
    version: str
    namespaced: bool

    @property
    def group(self) -> str:
        return self.version.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Change:
    """One step of the history; `before` or `after` is None where the object was not there."""

    version: int
    resource: Resource
    before: Object | None
    after: Object | None


@dataclass(frozen=True, slots=True)
class Rule:
    """Whether somebody may do something; `*` is everybody, everything, everywhere."""

    allowed: bool
    verb: str
    resource: str
    namespace: str = "*"
    user: str = "*"

    def covers(self, verb: str, resource: str, namespace: str, user: str) -> bool:
        told = (self.verb, self.resource, self.namespace, self.user)
        asked = (verb, resource, namespace, user)
        return all(rule in ("*", what) for rule, what in zip(told, asked, strict=True))


@dataclass
class Objects:
    """All objects. Callers hold the server's lock.

    Attributes:
        version: of the last change, in the whole "cluster".
        oldest: a watch may begin here or later; what was before is forgotten.
        owned: of an object, the fields that each manager has applied.
    """

    version: int = 1
    oldest: int = 0
    history: list[Change] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    owned: dict[Key, dict[str, set[tuple[str, ...]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.resources = [Resource(*row) for row in _KINDS]
        self._objects: dict[Key, Object] = {}

    def resource(self, kind: str, version: str = "") -> Resource:
        """By kind or plural, in any case of letters; an unknown kind is made known."""
        for known in self.resources:
            names = (known.kind.lower(), known.plural)
            if kind.lower() in names and version in ("", known.version):
                return known
        plural = re.sub(r"y$", "ie", kind.lower()) + "s"
        self.resources.append(made := Resource(plural, kind, version or "v1", namespaced=True))
        return made

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self._objects.get((_id(resource), namespace, name))

    def all(self, resource: Resource, namespace: str) -> Iterator[Object]:
        """In all namespaces where none is given; in the order of their names."""
        for (kind, where, _), found in sorted(self._objects.items()):
            if kind == _id(resource) and namespace in ("", where):
                yield found

    def set(self, resource: Resource, namespace: str, name: str, after: Object | None) -> Object:
        """Puts `after` in its place, or removes what is there. Returns it with its new version."""
        key = (_id(resource), namespace, name)
        before = self._objects.pop(key, None)
        self.version += 1
        if after is not None:
            after = copy.deepcopy(after)
            meta = after.setdefault("metadata", {})
            meta |= {"name": name, "resourceVersion": str(self.version)}
            if resource.namespaced:
                meta["namespace"] = namespace
            old = {} if before is None else before["metadata"]
            meta["uid"] = old.get("uid") or meta.get("uid") or f"uid-{self.version}"
            meta["creationTimestamp"] = old.get("creationTimestamp") or "2026-01-01T00:00:00Z"
            after |= {"kind": resource.kind, "apiVersion": resource.version}
            self._objects[key] = after
        else:
            self.owned.pop(key, None)
        self.history.append(Change(self.version, resource, before, after))
        return after or before or {}

    def allowed(self, verb: str, resource: str, namespace: str, user: str) -> bool:
        """What the last rule says that covers it; all that no rule covers is allowed."""
        for rule in reversed(self.rules):
            if rule.covers(verb, resource, namespace, user):
                return rule.allowed
        return True

    def applied(
        self, resource: Resource, namespace: str, name: str, manager: str, wanted: Object
    ) -> tuple[Object, list[str]]:
        """The object after a server-side apply, and what is in the way: fields of other managers.

        Fields that `manager` had applied before, and that `wanted` has no more, go. Lists are
        fields in one piece.
        """
        key = (_id(resource), namespace, name)
        owners = self.owned.setdefault(key, {})
        result = copy.deepcopy(self._objects.get(key) or {})
        fields = dict(_leaves(wanted))
        conflicts = [
            f'conflict with "{other}": .{".".join(path)}'
            for other, theirs in owners.items()
            for path in sorted(theirs & set(fields))
            if other != manager and _at(result, path) != fields[path]
        ]
        for path in owners.get(manager, set()) - set(fields):
            if not any(path in theirs for other, theirs in owners.items() if other != manager):
                _remove(result, path)
        merged: Object = merge(result, wanted)
        return merged, conflicts

    def own(
        self, resource: Resource, namespace: str, name: str, manager: str, wanted: Object
    ) -> None:
        """The fields of `wanted` are the manager's now."""
        owners = self.owned.setdefault((_id(resource), namespace, name), {})
        fields = {path for path, _ in _leaves(wanted)}
        for other in set(owners) - {manager}:
            owners[other] -= fields
        owners[manager] = fields


def merge(old: Any, new: Any) -> Any:
    """JSON merge patch: null removes a field, objects are merged, all else is replaced."""
    if not isinstance(new, Mapping):
        return copy.deepcopy(new)
    result = copy.deepcopy(dict(old)) if isinstance(old, Mapping) else {}
    for name, value in new.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def _id(resource: Resource) -> str:
    return f"{resource.version}/{resource.plural}"


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Fields with their paths, without those that name the object."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            if (*path, name) not in _NAMES:
                yield from _leaves(inner, (*path, name))
    else:
        yield path, value


_NAMES = {("kind",), ("apiVersion",), ("metadata", "name"), ("metadata", "namespace")}


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _remove(value: Object, path: tuple[str, ...]) -> None:
    inner = _at(value, path[:-1])
    if isinstance(inner, dict):
        inner.pop(path[-1], None)
