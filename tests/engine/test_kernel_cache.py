from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slipstream.engine import integer_kernel, kernel_cache
from slipstream.engine.kernel_cache import CACHED, Kernels, digest, sources


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, from which the digest is taken."""
    for path in sources():
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(kernel_cache, "_HERE", tmp_path)
    return tmp_path


def test_another_copy_of_the_same_sources_finds_the_same(copied: Path) -> None:
    """A second checkout need not compile: where the sources are does not matter."""
    assert digest() == kernel_cache.FOLDER.name


def test_a_change_of_any_source_is_noticed(copied: Path) -> None:
    """A kernel holds code of other files than its own: a change in any names a new folder."""
    names = {path.name for path in sources()}
    assert {"kernels.py", "team.py", "attention_tiles.py", "block_kernel.py"} <= names
    seen = {digest()}
    for name in sorted(names):
        with (copied / name).open("a") as file:
            file.write("# another\n")
        seen.add(digest())
    assert len(seen) == 1 + len(names)


def test_another_processor_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared disk machines do not run code that was compiled for another one."""
    monkeypatch.setattr(kernel_cache.binding, "get_host_cpu_name", lambda: "another")
    assert digest() != kernel_cache.FOLDER.name


def test_constants_come_from_files_that_count() -> None:
    """What kernels import from us is in the digest, but for the type of a batch."""
    counted = {path.stem for path in sources()}
    imported = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(
                "slipstream.engine."
            ):
                imported.add(str(node.module).rpartition(".")[2])
    assert imported - counted == {"batch"}


def test_each_closure_has_a_file_of_its_own() -> None:
    """Processes that compile two of them at once cannot mix them up."""

    def make(bits: int) -> Callable[[], int]:
        return lambda: bits

    assert len({Kernels(make(bits)).get_disambiguator() for bits in (4, 8)}) == 2


@pytest.mark.skipif(not integer_kernel.available(), reason="this CPU has no such instructions")
@pytest.mark.skipif(not CACHED, reason="no cache can be written here")
def test_the_second_start_compiles_no_worker() -> None:
    """The workers of integer products, which took seconds of every start, are read."""
    integer_kernel._worker(4, 2)
    assert integer_kernel._worker.__wrapped__(4, 2).cache_hits == 1


@pytest.mark.skipif(not CACHED, reason="no cache can be written here")
def test_the_second_start_compiles_nothing() -> None:
    """What a service imports is all read from the cache, and nobody is told otherwise."""
    modules = [f"slipstream.engine.{path.stem}" for path in sources()]
    for module in modules:
        importlib.import_module(module)
    script = (
        f"from slipstream.core import stages\nstages.listen(print)\nimport {', '.join(modules)}\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""


@pytest.mark.skipif(sys.platform != "linux", reason="nothing can be made in Linux's /proc")
def test_nothing_can_be_written() -> None:
    """With a read-only disk kernels are compiled and not kept, and whoever waits is told so."""
    script = (
        "from slipstream.core import stages\n"
        "stages.listen(print)\n"
        "from slipstream.engine.kernel_cache import CACHED\n"
        "from numba import njit\n"
        "assert not CACHED\n"
        "assert njit('int64(int64)', cache=CACHED)(lambda x: x + 1)(1) == 2\n"
    )
    environment = {**os.environ, "SLIPSTREAM_CACHE": "/proc/none"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "compiling kernels, as no cache can be written\n"
