"""What we use of `transformers`, imported without what only training, vision and compiling need.

Its base class of all models imports every loss function that it knows, and some of these import
`scipy` and `sklearn` where they are installed. It marks functions for torch's compiler, and asks
whether torch can be distributed: either imports half of torch. Together that is a third of the
time that a service takes to import what it needs, and a hundred megabytes of each.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_UNUSED = ("scipy", "sklearn")
_COMPILER = "torch._dynamo"
_MODULES = ("modeling_utils", "generation.utils", "masking_utils")


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


def _mark(function: Any = None, *_: object, **__: object) -> Any:
    """A decorator, with arguments or without, that leaves a function as it is."""
    return _mark if function is None else function


class _NoCompiler(ModuleType):
    """In place of torch's compiler: its marks, which nothing but the compiler looks at."""

    allow_in_graph = assume_constant_result = disable = staticmethod(_mark)

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        # The parts that are asked for by name can be had without the whole.
        self.__path__ = [str(Path(torch.__file__).with_name("_dynamo"))]


@contextmanager
def _alone_and_uncompiled() -> Iterator[None]:
    """Torch has no compiler and knows of no other process meanwhile."""
    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    sys.modules[_COMPILER] = _NoCompiler()
    try:
        yield
    finally:
        del sys.modules[_COMPILER]
        torch.distributed.is_available = is_available


def _import() -> None:
    for module in _MODULES:
        importlib.import_module(f"transformers.{module}")


def _import_the_least() -> None:
    with _as_if_not_installed(_UNUSED):
        try:
            if _COMPILER not in sys.modules:
                with _alone_and_uncompiled():
                    _import()
        except (ImportError, AttributeError):
            # Another version needs more of what is private to torch: it gets everything.
            pass
        _import()


# Whoever imported `transformers` before us may have made it look for them; it remembers the answer.
if "transformers" not in sys.modules:
    _import_the_least()
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM  # noqa: E402
from transformers.initialization import no_init_weights  # noqa: E402

__all__ = ["AttentionInterface", "AutoConfig", "AutoModelForCausalLM", "no_init_weights"]
