"""What we use of `transformers`, imported without what only training and vision need.

Its base class of all models imports every loss function that it knows, and some of these import
`scipy` and `sklearn` where they are installed: 20 MB of each service for object detection.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_UNUSED = ("scipy", "sklearn")


@contextmanager
def _as_if_not_installed(packages: tuple[str, ...]) -> Iterator[None]:
    """Importing one of these fails meanwhile."""
    found = {name: sys.modules[name] for name in packages if name in sys.modules}
    # The import system's own mark for a module that must not be found.
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
        sys.modules.update(found)


# Whoever imported `transformers` before us may have made it look for them; it remembers the answer.
with _as_if_not_installed(() if "transformers" in sys.modules else _UNUSED):
    importlib.import_module("transformers.modeling_utils")
    importlib.import_module("transformers.generation.utils")
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

__all__ = ["AttentionInterface", "AutoConfig", "AutoModelForCausalLM"]
