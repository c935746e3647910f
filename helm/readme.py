"""`python helm/readme.py [--check]`: writes the chart's README, or says whether it is up to date.

The head is helm/readme.md.head; the tables have every value, with its default from values.yaml and
its type and description from values.schema.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
CHART = HERE / "slipstream"
README = CHART / "README.md"
# Blocks that are one row: what is in them says itself.
_WHOLE = {"#/$defs/budget"}
_NO_DEFAULT = object()


class Undescribed(Exception):
    """A value that the schema does not know or does not describe; the message names it."""


def rows(
    schema: dict[str, Any], value: Any, definitions: dict[str, Any], path: str
) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and description of what is in a block, or of a value that is none.

    Raises:
        Undescribed: there is no description.
    """
    reference = schema.get("$ref")
    if reference is not None:
        schema = {**definitions[reference.rsplit("/", 1)[1]], **schema}
    properties = schema.get("properties")
    if properties is None or reference in _WHOLE:
        if "description" not in schema:
            raise Undescribed(f"{path}: values.schema.json has no description of it")
        yield path, _type(schema), _default(value), schema["description"]
        return
    values = value if isinstance(value, dict) else {}
    for name in values:
        if name not in properties:
            raise Undescribed(f"{path}.{name}: values.schema.json does not know it")
    for name in [*values, *(name for name in properties if name not in values)]:
        inner = values.get(name, _NO_DEFAULT)
        yield from rows(properties[name], inner, definitions, f"{path}.{name}")


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join({"object": "map", "array": "list"}.get(kind, kind) for kind in kinds)


def _default(value: Any) -> str:
    return "" if value is _NO_DEFAULT else f"`{json.dumps(value, ensure_ascii=False)}`"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def render() -> str:
    """The README, from the files in the chart.

    Raises:
        Undescribed: the schema lacks a value or a description.
    """
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    definitions = schema["$defs"]
    single: list[str] = []
    blocks: list[str] = []
    for name, block in schema["properties"].items():
        value = values.get(name, _NO_DEFAULT)
        lines = [
            _row([f"`{path}`", kind, default, text])
            for path, kind, default, text in rows(block, value, definitions, name)
        ]
        if "properties" in block:
            title = f"## {name}\n\n{block['description']}.\n"
            blocks.append("\n".join([title, *_HEADER, *lines, ""]))
        else:
            single += lines
    head = (HERE / "readme.md.head").read_text()
    note = (
        "<!-- Made by `make chart-docs`: change helm/readme.md.head, values.yaml or the schema. -->"
    )
    return "\n".join([note, head, *_HEADER, *single, "", *blocks]).rstrip() + "\n"


_HEADER = (_row(["value", "type", "default", "meaning"]), _row(["---"] * 4))


def main(arguments: Sequence[str]) -> int:
    try:
        text = render()
    except Undescribed as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    if list(arguments) == ["--check"]:
        if README.exists() and README.read_text() == text:
            return 0
        sys.stderr.write(f"{README.relative_to(HERE.parent)} is out of date: run make chart-docs\n")
        return 1
    README.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
