"""Label and field selectors of list and watch, as the API server reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_SET = re.compile(r"^(\S+)\s+(in|notin)\s*\(([^)]*)\)$")
_EQUAL = re.compile(r"^([^\s!=]+)\s*(==|=|!=)\s*([^\s=]*)$")
_THERE = re.compile(r"^(!?)\s*([^\s!=(),]+)$")
# Commas between requirements, not those inside of brackets.
_BETWEEN = re.compile(r",(?![^(]*\))")

Matches = Callable[[Mapping[str, Any]], bool]


def selected(labels: str, fields: str) -> Matches:
    """Whether an object is asked for by both.

    Raises:
        ValueError: one of them cannot be read.
    """
    tests = [_label_test(each.strip()) for each in _BETWEEN.split(labels) if each.strip()]
    tests += [_field_test(each.strip()) for each in fields.split(",") if each.strip()]
    return lambda found: all(test(found) for test in tests)


def _label_test(requirement: str) -> Matches:
    def of(found: Mapping[str, Any], name: str) -> str | None:
        value = (found["metadata"].get("labels") or {}).get(name)
        return None if value is None else str(value)

    if match := _SET.match(requirement):
        name, how, inside = match.groups()
        values = {value.strip() for value in inside.split(",")}
        return lambda found: (of(found, name) in values) == (how == "in")
    if match := _EQUAL.match(requirement):
        name, how, wanted = match.groups()
        return lambda found: (of(found, name) == wanted) == (how != "!=")
    if match := _THERE.match(requirement):
        absent, name = match.groups()
        return lambda found: (of(found, name) is None) == bool(absent)
    raise ValueError(f"unable to parse requirement: {requirement}")


def _field_test(requirement: str) -> Matches:
    match = _EQUAL.match(requirement)
    if match is None:
        raise ValueError(f"invalid field selector: {requirement}")
    path, how, wanted = match.groups()

    def test(found: Mapping[str, Any]) -> bool:
        value: Any = found
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return (str("" if value is None else value) == wanted) == (how != "!=")

    return test
