"""The values: each has a default and a description, and unknown ones are refused."""

from __future__ import annotations

import re

from tests.chart import values_schema
from tests.chart.values_schema import Path


def _dotted(path: Path) -> str:
    return ".".join(path)


def test_every_value_is_described() -> None:
    """Each value in values.yaml is in the schema, with a description."""
    known = values_schema.nodes()
    undescribed = [
        _dotted(path)
        for path in values_schema.leaves()
        for depth in range(1, len(path) + 1)
        if not known.get(path[:depth], {}).get("description")
    ]
    assert not undescribed


def test_every_property_has_a_default() -> None:
    """Whatever the schema allows is in values.yaml with its default, so that it can be found there;
    `global` is helm's own, and a resource's name or a claim is the user's to add."""
    leaves = values_schema.leaves()
    groups = {path[:depth] for path in leaves for depth in range(1, len(path) + 1)}
    missing = {
        _dotted(path)
        for path in values_schema.nodes()
        if path not in groups and not re.search(OPEN, _dotted(path))
    }
    assert not missing


# Parts of Kubernetes' own types, which values.yaml shows whole or leaves empty.
OPEN = r"^global$|resources\.(requests|limits|claims)|rollingUpdate$|image\.registry$"


def test_unknown_values_are_refused() -> None:
    """No group of values takes a name that it does not know: a typing error is told."""
    groups = [
        path
        for path, node in values_schema.nodes().items()
        if node.get("properties") and node.get("additionalProperties") is not False
    ]
    assert not groups
