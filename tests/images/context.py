"""The files that a build may copy: those of a folder that its .dockerignore lets through."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from pathlib import Path


class Context:
    def __init__(self, root: Path) -> None:
        self.root = root
        lines = (root / ".dockerignore").read_text().splitlines()
        self._rules = [
            (_pattern(line.strip().removeprefix("!")), not line.startswith("!"))
            for line in lines
            if line.strip() and not line.startswith("#")
        ]

    def has(self, name: str) -> bool:
        """Whether the last rule that speaks of the path, or of a folder above it, lets it in."""
        parts = name.split("/")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        ignored = False
        for pattern, ignore in self._rules:
            if any(pattern.fullmatch(path) for path in above):
                ignored = ignore
        return not ignored

    def files(self) -> list[str]:
        """All that is let in, by their paths from the root."""
        found = []
        for folder, folders, names in os.walk(self.root):
            here = Path(folder).relative_to(self.root)
            # Nothing of these may get in by the rules, and to walk them takes long.
            folders[:] = [name for name in folders if name not in {".git", ".venv", "build"}]
            found += [(here / name).as_posix() for name in names]
        return sorted(name for name in found if self.has(name))

    def copy(self, source: str, target: Path, into: bool) -> None:
        """COPY of one source: a file, or what is in a folder."""
        source = source.removeprefix("./")
        wanted = [name for name in self.files() if f"{name}/".startswith(f"{source}/")]
        assert wanted, f"COPY {source}: no such file in the context"
        for name in wanted:
            rest = name.removeprefix(source).lstrip("/")
            place = target / rest if rest else (target / Path(name).name if into else target)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.root / name, place)


def _pattern(text: str) -> re.Pattern[str]:
    """`*` ends at a slash, `**/` stands for any number of folders."""
    pieces = []
    for part in text.strip("/").split("/"):
        if part == "**":
            pieces.append("(?:[^/]+/)*")
        else:
            one = fnmatch.translate(part).removeprefix("(?s:").removesuffix(")\\Z")
            pieces.append(one.replace(".*", "[^/]*") + "/")
    return re.compile("".join(pieces).removesuffix("/"))
