"""The chart's values and their schema: leaves, descriptions, and values that can be told again."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from tests.chart.helm import CHART, Object

Path = tuple[str, ...]


@functools.cache
def schema() -> Object:
    return dict(json.loads((CHART / "values.schema.json").read_text()))


@functools.cache
def defaults() -> Object:
    return dict(yaml.safe_load((CHART / "values.yaml").read_text()))


def resolved(node: Mapping[str, Any]) -> Object:
    """A node with what its $ref leads to, its own words winning."""
    ref = node.get("$ref")
    if ref is None:
        return dict(node)
    name = ref.removeprefix("#/$defs/")
    own = {key: value for key, value in node.items() if key != "$ref"}
    return {**resolved(schema()["$defs"][name]), **own}


def properties(
    node: Mapping[str, Any] | None = None, at: Path = ()
) -> Iterator[tuple[Path, Object]]:
    """Every property that the schema names, groups of values and leaves, outermost first."""
    for key, inner in resolved(schema() if node is None else node).get("properties", {}).items():
        child = resolved(inner)
        yield (*at, key), child
        yield from properties(child, (*at, key))


def nodes() -> dict[Path, Object]:
    return dict(properties())


def leaves() -> dict[Path, Any]:
    """Default of every value that is not a group of others by the schema."""
    known = nodes()
    found: dict[Path, Any] = {}

    def visit(value: Any, at: Path) -> None:
        inside = known.get(at, {}).get("properties") if at else True
        if inside and isinstance(value, dict) and value:
            for key, inner in value.items():
                visit(inner, (*at, key))
        else:
            found[at] = value

    visit(defaults(), ())
    return found


def nested(path: Path, value: Any) -> Object:
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def fits(value: Any, node: Mapping[str, Any]) -> bool:
    whole = {**node, "$defs": schema()["$defs"]}
    return bool(Draft202012Validator(whole).is_valid(value))


def _candidates(mark: int) -> Iterator[Any]:
    """Values of all kinds that carry the number `mark`."""
    word = f"zz{mark}"
    yield from (
        mark,
        mark / 10000,
        word,
        f"https://{word}",
        f"{mark}",
        f"{mark}Gi",
        f"{mark}h",
        f"{mark}mb",
    )
    yield from (f"zz/{word}", f"/{word}")
    yield f"sha256:{mark:064d}"
    yield {word: "x"}
    yield {"limits": {"cpu": f"{mark}m"}}
    yield {"cpu": f"{mark}m"}
    yield from ([f"--{word}"], [word], [mark], [f"/{word}"], [f"fd00::{mark}/128"])
    yield [{"name": word, "averageValue": "1"}]
    yield [{"query": word, "threshold": "1"}]
    yield [{"topologyKey": word, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]
    yield [{"name": word, "mountPath": f"/{word}"}]
    yield [{"name": word, "emptyDir": {"sizeLimit": "1Mi"}}]
    yield [{"podSelector": {"matchLabels": {word: "x"}}}]
    yield [{"name": word, "value": "x"}]
    yield [{"name": word}]
    yield [{word: "x"}]


def marked(path: Path, mark: int) -> Any:
    """A value for a leaf that shows wherever it is rendered, by the number in it; None: there is
    none (a choice of few words, a small number)."""
    node = nodes()[path]
    if "enum" in node:
        return None
    return next((value for value in _candidates(mark) if fits(value, node)), None)


def others(path: Path, now: Any) -> list[Any]:
    """Values of a leaf of few choices, but for the one that it has now."""
    node = nodes()[path]
    if isinstance(now, bool):
        return [not now]
    numbers = [] if isinstance(now, str) else [n for n in (1, 2, 3, 0) if fits(n, node)]
    return [value for value in [*node.get("enum", []), *numbers] if value != now]


def at(values: Any, path: Path) -> Any:
    for key in path:
        values = values[key]
    return values
