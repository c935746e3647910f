"""What the doctor finds, and how it is told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is; in the order of their being shown."""

    problem = "problem"
    warning = "warning"
    note = "note"
    ok = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: stable name of what was found, as in the table of docs/kubernetes.md.
        about: the object or pod.
        text: one line.
        do: what to do about it; empty where there is nothing to do.
    """

    level: Level
    check: str
    about: str
    text: str
    do: str = ""


def ok(check: str, about: str, text: str) -> Finding:
    return Finding(Level.ok, check, about, text)


def note(check: str, about: str, text: str, do: str = "") -> Finding:
    return Finding(Level.note, check, about, text, do)


def warning(check: str, about: str, text: str, do: str) -> Finding:
    return Finding(Level.warning, check, about, text, do)


def problem(check: str, about: str, text: str, do: str) -> Finding:
    return Finding(Level.problem, check, about, text, do)


def worst_first(found: Iterable[Finding]) -> list[Finding]:
    order = list(Level)
    return sorted(found, key=lambda one: order.index(one.level))


def as_text(found: Sequence[Finding]) -> str:
    """A line for each finding, one for what to do, and one with the sum."""
    lines = []
    for one in found:
        lines.append(f"{one.level:<8} {one.about}: {' '.join(one.text.split())}")
        if one.do:
            lines.append(f"         do: {' '.join(one.do.split())}")
    counts = [(sum(one.level is level for one in found), level) for level in Level]
    lines.append(", ".join(f"{count} {_plural(level, count)}" for count, level in counts))
    return "\n".join(lines)


def as_json(namespace: str, release: str, found: Sequence[Finding]) -> str:
    told = [asdict(one) for one in found]
    return json.dumps({"namespace": namespace, "release": release, "findings": told}, indent=2)


def healthy(found: Iterable[Finding]) -> bool:
    """Whether there is no problem."""
    return all(one.level is not Level.problem for one in found)


def _plural(level: Level, count: int) -> str:
    return f"{level}" if level is Level.ok or count == 1 else f"{level}s"
