"""Validates objects against the Kubernetes schemas of a version, and those of custom resources.

kubernetes-validate reads a megabyte of definitions again for every object; here they and the
validators stay, and an object that was found well in one render is not looked at in the next.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.chart.helm import Object

VERSIONS = ("1.32", "1.35", "1.37")
# The custom resources' schemas: KIND-GROUP-VERSION.json, lower case.
CUSTOM = Path(__file__).parent / "schemas"
_BUILT_IN = re.compile(r"^(v1|(apps|batch|autoscaling|policy)/.*|[a-z.]+\.k8s\.io/.*)$")


def is_built_in(api_version: str) -> bool:
    """Whether Kubernetes itself serves it; the Gateway API has a name like that, and is not."""
    return bool(_BUILT_IN.match(api_version)) and "gateway.networking" not in api_version


@functools.cache
def _folder(version: str) -> Any:
    package = importlib.resources.files("kubernetes_validate")
    return package / "kubernetes-json-schema" / f"v{version}.0-local-strict"


@functools.cache
def _registry(version: str) -> Registry[Any]:
    text = (_folder(version) / "_definitions.json").read_text()
    return Resource.from_contents(json.loads(text)) @ Registry()


@functools.cache
def _built_in(kind: str, api_version: str, version: str) -> Draft202012Validator | None:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    path = _folder(version) / f"{kind.lower()}-{group}.json"
    if not path.is_file():
        return None
    resource = Resource.from_contents(json.loads(path.read_text()))
    return Draft202012Validator(resource.contents, registry=resource @ _registry(version))


@functools.cache
def _custom(kind: str, api_version: str) -> Draft202012Validator | None:
    group, _, version = api_version.partition("/")
    path = CUSTOM / f"{kind.lower()}-{group}-{version}.json"
    return Draft202012Validator(json.loads(path.read_text())) if path.is_file() else None


def faults(item: Object, version: str) -> list[str]:
    """What an API server of Kubernetes `version` would have against an object."""
    return list(_faults(json.dumps(item, sort_keys=True), version))


@functools.cache
def _faults(text: str, version: str) -> tuple[str, ...]:
    item = json.loads(text)
    kind, api_version = item["kind"], item["apiVersion"]
    if is_built_in(api_version):
        validator = _built_in(kind, api_version, version)
    else:
        validator = _custom(kind, api_version)
    if validator is None:
        return (f"no schema for {api_version} {kind} in {version}",)
    return tuple(
        f"{version} {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in validator.iter_errors(item)
    )
