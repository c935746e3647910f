"""Layer plan files of a command line, by names that tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slipstream.core.layer_plan import LayerPlan


def load_plans(paths: Sequence[Path]) -> dict[str, LayerPlan]:
    """By the file's name, with as many of its folders as it takes to tell it from the others.

    Raises:
        ConfigurationError: a file is missing or is no layer plan.
    """
    files = list(dict.fromkeys(path.absolute() for path in paths))
    return {_name(file, files): LayerPlan.load(file) for file in files}


def _name(file: Path, among: Sequence[Path]) -> str:
    others = [other for other in among if other != file]
    for length in range(1, len(file.parts)):
        if all(_ending(other, length) != _ending(file, length) for other in others):
            return _ending(file, length)
    return str(file)


def _ending(file: Path, length: int) -> str:
    return "/".join((*file.parts[-length:-1], file.stem))
