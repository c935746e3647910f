"""What a service says that cannot start: exit code 2 and one clear line."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from slipstream.core.layer_plan import LayerPlan
from slipstream.wire.process import run_service
from tests.certificates import Authority, options
from tests.integration.conftest import TINY

ROLES = ("verifier", "drafter")
both = pytest.mark.parametrize("role", ROLES)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Services set the number of threads; the tests that follow want their own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@contextmanager
def _logging() -> Iterator[None]:
    """Services send what is logged to stderr, here a file that is closed after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def complaints(said: str) -> list[str]:
    """All lines but those that tell how far a start has come."""
    return [line for line in said.splitlines() if not line.endswith(" INFO loading the model")]


@pytest.fixture
def refused(capfd):
    """Runs a service in this process; returns its one line."""

    def run(role: str, *arguments: str) -> str:
        main = importlib.import_module(f"{role}_service.__main__")
        with _logging():
            code = run_service(role, main.Settings, main.serve, arguments)
        assert code == 2
        line, *more = complaints(capfd.readouterr().err)
        assert more == []
        assert line.startswith(f"{role}: error: ")
        return line

    return run


def here(model: Path, *more: str) -> tuple[str, ...]:
    return ("--model", str(model), "--listen", "127.0.0.1:0", *TINY, *more)


@both
def test_port_in_use(refused, role, tiny) -> None:
    """A port in use is told with the address, before the model is loaded."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        line = refused(role, "--model", str(tiny), "--listen", address)
    assert address in line
    assert "in use" in line


@both
def test_health_port_in_use(refused, role, tiny) -> None:
    """The same of the port for probes, with its option."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        line = refused(role, *here(tiny), "--health", address)
    assert f"{address} (--health): the port is in use" in line


@both
def test_certificates(refused, role, tiny, tmp_path) -> None:
    """A certificate that is missing is named before the model is loaded; so are some files only."""
    assert "belong together" in refused(role, *here(tiny, "--tls-ca", "ca.crt"))
    files = Authority.new().files(tmp_path)
    files.cert.unlink()
    line = refused(role, *here(tmp_path / "nowhere", *options(files)))
    assert f"--tls-cert {files.cert} cannot be read" in line


@both
def test_missing_model(refused, role, tmp_path) -> None:
    """A folder that is not there, or is no model, is named."""
    assert str(tmp_path / "nowhere") in refused(role, *here(tmp_path / "nowhere"))
    assert "config.json" in refused(role, *here(tmp_path))
    # The system does not even say whether it is there, as in a folder that one may not enter.
    line = refused(role, *here(tmp_path / ("x" * 300)))
    assert "cannot read" in line
    assert f"it must be a file that user {os.geteuid()} may read" in line


@both
@pytest.mark.parametrize("left", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights(refused, role, tiny, tmp_path, left) -> None:
    """Weights that were cut short anywhere are told as such, with the file or folder."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(len(whole) * left)])
    assert str(broken) in refused(role, *here(broken))


@both
def test_no_weights(refused, role, tiny, tmp_path) -> None:
    """A folder with a config and no weights is told so."""
    shutil.copy(tiny / "config.json", tmp_path)
    assert "safetensors" in refused(role, *here(tmp_path))


@both
def test_broken_config(refused, role, tiny, tmp_path) -> None:
    """A config that is not JSON is named."""
    shutil.copytree(tiny, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{")
    assert "config.json" in refused(role, *here(tmp_path / "broken"))


@both
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--dtype", "int3"),
        ("--threads", "-1"),
        ("--threads", "many"),
        ("--kv-cache-gib", "0"),
        ("--kv-cache-gib", "nan"),
        ("--max-sequences", "0"),
        ("--log-level", "loud"),
        ("--cpus", "zero"),
        ("--cpus", "4095"),
        ("--kv-cache-gib", "0.0000001"),
    ],
)
def test_settings(refused, role, tiny, option, value) -> None:
    """A value that a setting cannot have is told with the option's name."""
    line = refused(role, *here(tiny), option, value)
    assert any(words in line for words in (option, "KV pool", "cores 4095"))


@both
def test_unknown_option(refused, role, tiny) -> None:
    """An option that there is not is told in one line, without pages of usage."""
    line = refused(role, *here(tiny), "--max-weight", "3")
    assert "unrecognized arguments: --max-weight 3" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@both
def test_device_that_is_not_there(refused, role, tiny) -> None:
    """--device cuda without one is a configuration error."""
    assert "CUDA" in refused(role, *here(tiny), "--device", "cuda")


def test_layer_plans(refused, tiny, tmp_path) -> None:
    """A layer plan that is missing, nonsense or for another model is told as such."""
    path = tmp_path / "plan.json"

    def line() -> str:
        return refused("drafter", *here(tiny, "--layer-plan", str(path)))

    assert str(path) in line()
    path.write_text('{"precision": "int3"}')
    assert "precision" in line()
    LayerPlan(skip_mlp=frozenset({7})).save(path)
    assert "[7]" in line()
    LayerPlan(model_fingerprint="0123456789abcdef").save(path)
    assert "made for model 0123456789ab" in line()


@both
def test_real_process(start, role, tmp_path) -> None:
    """The same from outside: exit code 2 and that one line."""
    service = start(role, tmp_path / "nowhere", TINY)
    assert service.process.wait(150) == 2
    assert len(complaints(service.log)) == 1
    assert "nowhere" in service.log


@pytest.mark.parametrize(
    "address", ["nonsense", "127.0.0.1:many", "192.0.2.1:50051", "127.0.0.1:99999"]
)
def test_addresses(refused, tiny, address) -> None:
    """An address that cannot be listened on is told in one line, whatever is wrong with it."""
    assert address in refused("verifier", "--model", str(tiny), "--listen", address)
