"""Each image is built by its own steps, and run as its container would be."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from slipstream.bench.processes import free_address
from slipstream.models.cache import open_to_all
from slipstream.wire.transport import is_serving
from tests.images.builder import Image
from tests.images.container import run, seal, start, unseal
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
START_SECONDS = 120.0
_FOUND = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
# Tries each folder on the way to a module of ours, and /, as a process that was broken into would.
_WRITE = """
import os, sys, gateway
for folder in (os.path.dirname(gateway.__file__), sys.prefix, os.path.dirname(sys.prefix)):
    try:
        open(os.path.join(folder, "planted.py"), "x")
    except PermissionError:
        print("refused")
"""


@contextlib.contextmanager
def sealed(image: Image) -> Iterator[Image]:
    seal(image)
    try:
        yield image
    finally:
        unseal(image)


@contextlib.contextmanager
def service(image: Image, options: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """The image's entry point with these options; it is told to stop in the end, and must."""
    with log.open("w") as output:
        process = start(image, [*image.entrypoint, *options], stdout=output, stderr=output)
    try:
        yield process
        process.send_signal(getattr(signal, image.stop_signal))
        assert process.wait(100) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert process.poll() is None, f"it ended:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"it is not ready:\n{log.read_text()}"
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def check_bytecode(image: Image) -> None:
    """Every module of ours was compiled from the file beside it: nothing can be, later."""
    site = next((image.root / "opt/slipstream").glob("lib/python*/site-packages"))
    sources = [
        path
        for package in ("slipstream", "gateway", "verifier_service", "drafter_service")
        for path in (site / package).rglob("*.py")
    ]
    assert len(sources) > 200
    for path in sources:
        header = Path(importlib.util.cache_from_source(str(path))).read_bytes()[:16]
        assert int.from_bytes(header[8:12], "little") == int(path.stat().st_mtime), path


def test_gateway(build, tmp_path: Path) -> None:
    """It holds no torch and no pip, cannot be written to, and serves what it fetched itself."""
    with sealed(build("gateway")) as image:
        assert image.user == "10001:10001"
        assert image.ports == [8000, 50050]
        assert image.labels["org.opencontainers.image.version"] == "1.2.3"
        check_bytecode(image)
        absent = ["torch", "transformers", "safetensors", "numba", "pip", "setuptools"]
        there = ["gateway", "kubernetes", "redis"]
        code, output = run(image, ["python", "-c", _FOUND, *absent, *there])
        assert (code, output) == (0, f"{there}\n")
        assert run(image, ["python", "-c", _WRITE]) == (0, "refused\n" * 3)
        model = f"{image.env['SLIPSTREAM_CACHE']}/default"
        fetched = run(image, ["slipstream", "fetch", "default", "--to", model, "--tokenizer-only"])
        assert fetched == (0, f"{model}\n")
        code, output = run(image, ["slipstream", "up"])
        assert code == 2
        assert "slipstream up needs torch" in output
        assert "pip install 'slipstream-serve[engine]'" in output
        http, log = free_address(), tmp_path / "log"
        options = ["--model", model, "--http", http, "--grpc", free_address()]
        with service(image, options, log) as process:
            until(lambda: answers(f"http://{http}/health"), process, log)


def test_verifier(build, scratch: Path, tmp_path: Path) -> None:
    """It loads a model and serves it, with all that this compiles and keeps in its volume."""
    model = write_tiny_model(scratch / "tiny")
    open_to_all(model)
    with sealed(build("verifier")) as image:
        assert image.ports == [50051, 50061, 9400]
        address, log = free_address(), tmp_path / "log"
        options = ["--model", str(model), "--listen", address, "--drafter", "off"]
        options += ["--dtype", "float32", "--kv-cache-gib", "0.0625", "--threads", "1"]
        with service(image, [*options, "--stop-grace", "0.5"], log) as process:
            until(lambda: asyncio.run(is_serving(address)), process, log)
        # What `slipstream fetch` brings the default model with.
        assert run(image, ["python", "-m", "pip", "--version"])[0] == 0


def test_drafter(build) -> None:
    """It starts, and has `slipstream tune` with all that a search needs."""
    with sealed(build("drafter")) as image:
        assert image.ports == [50052, 50062, 9401]
        code, output = run(image, [*image.entrypoint, "--help"])
        assert code == 0, output
        assert "--layer-plan" in output
        names = ["optuna", "matplotlib", "torch", "transformers", "numba"]
        assert run(image, ["python", "-c", _FOUND, *names]) == (0, f"{names}\n")
        code, output = run(image, ["slipstream", "tune", "--model", "/nowhere"])
        assert code != 0
        assert "there is no model '/nowhere'" in output
