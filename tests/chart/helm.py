"""The real helm over the chart: each combination of values is rendered once in a session."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "slipstream"
HELM = Path(sys.executable).with_name("helm")
KUBECTL = Path(sys.executable).with_name("kubectl")
RELEASE = "slipstream"
NAMESPACE = "models"
# What a cluster with everything that the chart can use serves beside Kubernetes' own.
ADD_ONS = (
    "monitoring.coreos.com/v1",
    "gateway.networking.k8s.io/v1",
    "cert-manager.io/v1",
    "keda.sh/v1alpha1",
)


class HelmError(Exception):
    """What helm wrote to stderr, where it ended with another code than 0."""


class _Loader(yaml.CSafeLoader):
    """Refuses a key that comes twice, as an API server does; the plain loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise yaml.constructor.ConstructorError(None, None, f"twice: {twice}", node.start_mark)
        return mapping


# The constructor of plain mappings builds them without construct_mapping's check.
_Loader.add_constructor(
    "tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True)
)


@dataclass(frozen=True)
class Render:
    """The objects of one `helm template`, hooks included, and the text that they came from."""

    text: str
    objects: tuple[Object, ...]

    @property
    def fixed(self) -> list[Object]:
        """The objects without what is made up anew each time: the contents of Secrets."""
        return [
            item if item["kind"] != "Secret" else {**item, "data": sorted(item.get("data", {}))}
            for item in self.objects
        ]

    def of(self, *kinds: str) -> list[Object]:
        return [item for item in self.objects if item["kind"] in kinds]

    def find(self, kind: str, name: str) -> Object | None:
        for item in self.of(kind):
            if item["metadata"]["name"] == name:
                return item
        return None

    def get(self, kind: str, name: str) -> Object:
        found = self.find(kind, name)
        assert found is not None, (
            f"no {kind} {name}, only {[item['metadata']['name'] for item in self.of(kind)]}"
        )
        return found


def run(*arguments: str | Path, given: str = "", program: Path = HELM) -> str:
    """stdout of `helm ARGUMENTS`. Raises HelmError: it failed, with what it wrote to stderr."""
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=100, check=False
    )
    if done.returncode:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


def parse(text: str) -> tuple[Object, ...]:
    return tuple(item for item in yaml.load_all(text, Loader=_Loader) if item)


def template(
    values: Mapping[str, Any] | None = None,
    *,
    files: Sequence[Path] = (),
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    kube: str = "1.37.0",
    add_ons: Sequence[str] = ADD_ONS,
    chart: Path = CHART,
) -> Render:
    """`helm template` with value files and then `values`. Raises HelmError."""
    return _template(
        json.dumps(values or {}, sort_keys=True),
        tuple(files),
        release,
        namespace,
        kube,
        tuple(add_ons),
        chart,
    )


@functools.cache
def _template(
    values: str,
    files: tuple[Path, ...],
    release: str,
    namespace: str,
    kube: str,
    add_ons: tuple[str, ...],
    chart: Path,
) -> Render:
    options = [f"--values={path}" for path in files]
    options += [f"--api-versions={name}" for name in add_ons]
    text = run(
        "template",
        release,
        chart,
        f"--namespace={namespace}",
        f"--kube-version={kube}",
        *options,
        "--values=-",
        given=values,
    )
    return Render(text, parse(text))


def refusal(values: Mapping[str, Any], **options: Any) -> str:
    """What helm says against `values`; "" where it takes them."""
    try:
        template(values, **options)
    except HelmError as error:
        return str(error)
    return ""


def value_files() -> dict[str, Path]:
    """The ready value files by their names."""
    return {path.stem: path for path in sorted((CHART / "values").glob("*.yaml"))}


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Values as helm merges them: mappings key by key, everything else by replacement."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            if isinstance(old, Mapping) and isinstance(value, Mapping):
                result[key] = merged(old, value)
            else:
                result[key] = value
    return result


def name_of(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def each(renders: Mapping[str, Render]) -> Iterator[tuple[str, Render, Object]]:
    """(combination, render, object) over several renders."""
    for label, render in renders.items():
        for item in render.objects:
            yield f"{label}: {name_of(item)}", render, item
