"""Packages that need not be fetched: taken from this environment where pip would install the same.

Before pip runs, the new environment gets their metadata alone, so that pip resolves in earnest and
says which of them it is content with. Those then get their files; the others go, so that what no
requirement asks for is not there either.
"""

from __future__ import annotations

import re
import shutil
import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path

from tests.images.builder import Image, link_distribution
from tests.images.dockerfile import Stage

_METADATA = ".dist-info"
_SATISFIED = re.compile(r"^Requirement already satisfied: ([\w.-]+)", re.MULTILINE)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class Seeds:
    """Hands packages to the environment at `prefix`; `Builder(watch=)`.

    Args:
        constraints: only these very versions are handed on.
    """

    def __init__(self, prefix: str, constraints: Path) -> None:
        self._prefix = prefix.lstrip("/")
        pinned = dict(
            line.split("==") for line in constraints.read_text().splitlines() if "==" in line
        )
        wanted = {_normal(name): version for name, version in pinned.items()}
        self._known: dict[str, Distribution] = {}
        for found in distributions(path=[sysconfig.get_path("purelib")]):
            name = _normal(found.name)
            if wanted.get(name) == found.version.partition("+")[0] and found.files:
                self._known[name] = found
        # In the stage that is being built: whose metadata is there, and with whom pip was content.
        self._shown: set[str] = set()
        self._wanted: set[str] = set()

    def __call__(self, stage: Stage, image: Image, output: str | None) -> None:
        if not any("--constraint" in step.value for step in stage.steps):
            return
        found = sorted((image.root / self._prefix).glob("lib/python*/site-packages"))
        if not found:
            return
        if output is None:
            self._complete(found[0])
        else:
            self._wanted |= {_normal(name) for name in _SATISFIED.findall(output)}
            if not self._shown:
                self._show(found[0])

    def _show(self, site: Path) -> None:
        for name, found in self._known.items():
            if not (site / _metadata(found)).exists():
                link_distribution(found, site, lambda folder: folder.endswith(_METADATA))
                self._shown.add(name)

    def _complete(self, site: Path) -> None:
        for name in self._shown:
            found = self._known[name]
            if name in self._wanted:
                link_distribution(found, site, lambda folder: not folder.endswith(_METADATA))
            else:
                shutil.rmtree(site / _metadata(found))
        self._shown, self._wanted = set(), set()


def _metadata(found: Distribution) -> str:
    (folder,) = {file.parts[0] for file in found.files or [] if file.parts[0].endswith(_METADATA)}
    return folder
