"""What a gateway needs of the default model, shipped: its own files come out of a conversion.

The archive holds what `slipstream fetch` makes of the model, without the weights. The model is
SmolLM2-135M-Instruct of Hugging Face, under the Apache License 2.0.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).with_name("default_tokenizer.tar.xz")


def unpack(folder: Path) -> None:
    """Writes the files into the folder."""
    with tarfile.open(ARCHIVE, "r:xz") as archive:
        archive.extractall(folder, filter="data")


def pack(model: Path, names: list[str], target: Path = ARCHIVE) -> None:
    """Makes the archive of files of the default model's folder: the same bytes from the same."""
    with tarfile.open(target, "w:xz", preset=9) as archive:
        for name in sorted(names):
            path = model / name
            if path.is_file():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = path.stat().st_size, 0o644
                with path.open("rb") as content:
                    archive.addfile(entry, content)


if __name__ == "__main__":
    from slipstream.models import resolve
    from slipstream.models.hub import TOKENIZER_PATTERNS

    pack(resolve("default"), TOKENIZER_PATTERNS)
