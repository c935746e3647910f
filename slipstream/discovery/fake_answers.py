"""What a `FakeApiServer` answers beside its objects: which resources there are, and rights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slipstream.discovery.fake_messages import ApiRequest, Refused
from slipstream.discovery.fake_objects import Object

if TYPE_CHECKING:
    from slipstream.discovery.fakes import FakeApiServer

REVIEWS = "/apis/authorization.k8s.io/v1/"


def other(api: FakeApiServer, asked: ApiRequest) -> tuple[int, Object]:
    """What is no resource: which there are, reviews of rights, the version."""
    if asked.path.startswith(REVIEWS):
        return 201, _review(api, asked)
    with api.lock:
        known = list(api.objects.resources)
    groups: dict[str, list[str]] = {}
    for resource in known:
        if resource.group and resource.version not in groups.setdefault(resource.group, []):
            groups[resource.group].append(resource.version)
    path = asked.path.rstrip("/")
    listed = (
        path.removeprefix("/apis/") if path.startswith("/apis/") else path.removeprefix("/api/")
    )
    if path == "/version":
        return 200, {
            "major": "1",
            "minor": "35",
            "gitVersion": "v1.35.0",
            "platform": "linux/amd64",
        }
    if path == "/api":
        return 200, {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        found = [_group(name, versions) for name, versions in groups.items()]
        return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}
    of_version = [resource for resource in known if resource.version == listed]
    if not of_version:
        raise Refused(404, "the server could not find the requested resource")
    return 200, {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": listed,
        "resources": [
            {
                "name": resource.plural,
                "singularName": resource.kind.lower(),
                "kind": resource.kind,
                "namespaced": resource.namespaced,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            }
            for resource in of_version
        ],
    }


def _group(name: str, versions: list[str]) -> Object:
    found = [{"groupVersion": v, "version": v.rpartition("/")[2]} for v in versions]
    return {"name": name, "versions": found, "preferredVersion": found[0]}


def _review(api: FakeApiServer, asked: ApiRequest) -> Object:
    spec = asked.body["spec"]
    what = spec.get("resourceAttributes") or {}
    user = spec.get("user") or api.user
    with api.lock:
        allowed = api.objects.allowed(
            what.get("verb", ""), what.get("resource", ""), what.get("namespace", ""), user
        )
    return {**asked.body, "status": {"allowed": allowed}}
