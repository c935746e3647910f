"""A Dockerfile as stages of steps, and its variables."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::([-+])([^}]*))?\}|(\w+))")


@dataclass(frozen=True)
class Step:
    """One instruction: its word in capitals, its options as --from, and the rest of its line."""

    word: str
    options: Mapping[str, str]
    value: str

    @property
    def pairs(self) -> dict[str, str]:
        """Of `A=1 B="2 3"`, as ENV and LABEL take them; not expanded."""
        return dict(part.partition("=")[::2] for part in shlex.split(self.value))

    @property
    def command(self) -> list[str]:
        """Of an instruction in exec form."""
        found = json.loads(self.value)
        assert isinstance(found, list), f"{self.word} {self.value} is not in exec form"
        return found


@dataclass
class Stage:
    """`image` as written behind FROM."""

    image: str
    name: str
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Dockerfile:
    """The ARGs before the first stage with their defaults, and the stages in order."""

    arguments: Mapping[str, str]
    stages: list[Stage]

    def all(self, word: str) -> list[Step]:
        return [step for stage in self.stages for step in stage.steps if step.word == word]


def read(path: Path) -> Dockerfile:
    parser = DockerfileParser(path=str(path), env_replace=False)
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for entry in parser.structure:
        word, value = entry["instruction"].upper(), entry["value"]
        if word == "COMMENT":
            continue
        if word == "FROM":
            image, _, name = value.partition(" AS ")
            stages.append(Stage(image, name or str(len(stages))))
        elif not stages:
            assert word == "ARG", f"{word} before the first FROM"
            name, _, default = value.partition("=")
            arguments[name] = "".join(shlex.split(default))
        else:
            stages[-1].steps.append(_step(word, value))
    return Dockerfile(arguments, stages)


def _step(word: str, value: str) -> Step:
    options: dict[str, str] = {}
    while (found := re.match(r"--(\w+)=(\S+)\s+", value)) is not None:
        options[found[1]] = found[2]
        value = value[found.end() :]
    return Step(word, options, value)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Puts values in place of $A, ${A}, ${A:-default} and ${A:+other}; an unknown one is empty."""

    def value(found: re.Match[str]) -> str:
        name, sign, word = found[1] or found[4], found[2], found[3]
        known = variables.get(name, "")
        if sign == "-":
            return known or word
        if sign == "+":
            return word if known else ""
        return known

    return _VARIABLE.sub(value, text)
