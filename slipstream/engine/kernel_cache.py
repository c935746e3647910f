"""Where compiled kernels are kept from one start to the next: in the user's cache, by content.

numba would keep them beside the source, for each copy of it anew, and would look for changes in the
file of the function alone, though a kernel holds code and constants of other files. Here a folder
is named by a digest of all of these files, of the compiler and of the CPU: what was compiled from
other sources, or elsewhere, cannot be found. Where no folder can be written, nothing is kept.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import llvmlite
import numba
from llvmlite import binding
from numba.core import config, event

from slipstream.core import stages
from slipstream.core.settings import cache_folder

_HERE = Path(__file__).parent
# Modules of numba that find a place for other functions than ours, as numba itself tries them.
_OTHERS = "UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator"
_UNUSED_SECONDS = 30 * 86400


def sources() -> list[Path]:
    """The files that kernels are made of."""
    files = sorted(_HERE.glob("*.py"))
    return [path for path in files if b"numba" in (text := path.read_bytes()) or b"llvm" in text]


def digest() -> str:
    """Names what kernels are compiled from, by what and for what."""
    found = hashlib.blake2b(digest_size=12)
    cpu = (binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
    for text in (numba.__version__, llvmlite.__version__, platform.python_version(), *cpu):
        found.update(f"{text}\n".encode())
    for path in sources():
        found.update(f"{path.name} {path.stat().st_size}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _usable(folder: Path) -> bool:
    """Makes the folder; False where nothing can be kept in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What is loaded from it runs: it must be nobody else's.
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            return False
        tempfile.TemporaryFile(dir=folder).close()
        os.utime(folder)
    except OSError:
        return False
    return True


def _forget_unused(folder: Path) -> None:
    """Removes what nobody has started with for a month."""
    before = time.time() - _UNUSED_SECONDS
    for other in folder.parent.iterdir():
        if other != folder and other.is_dir() and other.stat().st_mtime < before:
            shutil.rmtree(other, ignore_errors=True)


class Kernels:
    """What numba asks where the compiled code of a function is (a "cache locator")."""

    def __init__(self, function: Any) -> None:
        self._function = function

    @classmethod
    def from_function(cls, function: Any, file: str) -> Self | None:
        """None for what is no kernel of ours."""
        return cls(function) if CACHED and Path(file).parent == _HERE else None

    def ensure_cache_path(self) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(FOLDER)

    def get_source_stamp(self) -> str:
        return FOLDER.name

    def get_disambiguator(self) -> str:
        """A file for each function and each of its closures: of several entries in one file, two
        processes that write at the same time could take each other's."""
        closure = inspect.getclosurevars(self._function).nonlocals
        values = "".join(f"-{name}={closure[name]}" for name in sorted(closure))
        return f"{self._function.__code__.co_firstlineno}{values}"


def _tell_once() -> None:
    """Whoever waits for a start hears of the first kernel that has to be compiled."""

    def compiling(_: Any) -> None:
        event.unregister("numba:compile", listener)
        often = "once for this version on this machine" if CACHED else "as no cache can be written"
        stages.tell(f"compiling kernels, {often}")

    class Listener(event.Listener):
        on_start = staticmethod(compiling)

        def on_end(self, _: Any) -> None:
            pass

    listener = Listener()
    event.register("numba:compile", listener)


FOLDER = cache_folder() / "kernels" / digest()
_new = not FOLDER.exists()
# Whether compiled functions are kept.
CACHED = _usable(FOLDER)
if CACHED and _new:
    _forget_unused(FOLDER)
config.CACHE_LOCATOR_CLASSES = f"{__name__}.Kernels,{_OTHERS}"
_tell_once()
