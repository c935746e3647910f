from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from slipstream.core.layer_plan import LayerPlan

# Three services import torch, on cores that may do other things, too.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
FREE = [
    word
    for option in ("--http", "--grpc", "--verifier-listen", "--drafter-listen")
    for word in (option, "127.0.0.1:0")
]


def wait_for(condition: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


@dataclass
class Up:
    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def url(self) -> str:
        wait_for(
            lambda: "Ready" in self.out.read_text() or self.process.poll() is not None,
            200,
            self.err.read_text,
        )
        assert self.process.poll() is None, self.err.read_text()
        return self.out.read_text().split("curl ")[1].split("/v1/")[0]

    def _commands(self) -> dict[int, list[str]]:
        pid = self.process.pid
        found = {}
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            # It may have ended in between.
            with suppress(OSError):
                found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        return found

    def children(self) -> dict[str, int]:
        """Module name -> process id of each service."""
        lines = self._commands()
        return {line[2]: p for p, line in lines.items() if len(line) > 2 and line[1] == "-m"}

    def shards(self) -> dict[int, int]:
        """Number of each shard of the drafter -> process id."""
        return {
            int(line[line.index("--shard-index") + 1]): p
            for p, line in self._commands().items()
            if "--shard-index" in line
        }


@contextmanager
def up(folder: Path, model: Path, *options: str) -> Iterator[Up]:
    out, err = folder / "out", folder / "err"
    command = [sys.executable, "-m", "slipstream.cli", "up", "--model", str(model)]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen([*command, *FREE, *options], stdout=stdout, stderr=stderr)
    try:
        yield Up(process, out, err)
    finally:
        process.kill()
        process.wait(10)


def complete(url: str, **fields: object) -> str:
    body = {"model": "tiny", "prompt": "The quick", "temperature": 0, "max_tokens": 24, **fields}
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks at children through /proc")
def test_three_processes_serve_survive_and_stop(
    tmp_path: Path, tiny_model_dir: Path, alive: Callable[[int], bool]
) -> None:
    """One command serves; the same text comes with the drafter killed; Ctrl-C ends all with 0."""
    options = ["--served-model-name", "tiny", "--kv-cache-gib", "0.05", "--dtype", "float32"]
    with up(tmp_path, tiny_model_dir, *options) as running:
        url = running.url()
        first = running.children()
        assert set(first) == {"drafter_service", "verifier_service", "gateway"}
        text = complete(url, ignore_eos=True)
        assert text == complete(url, ignore_eos=True, speculative=False)
        os.kill(first["drafter_service"], signal.SIGKILL)
        assert complete(url, ignore_eos=True) == text
        killed = (None, first["drafter_service"])
        wait_for(
            lambda: running.children().get("drafter_service") not in killed,
            60,
            running.err.read_text,
        )
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(60) == 0
        assert "the drafter was ended by SIGKILL" in running.err.read_text()
        assert running.out.read_text().count("\n") == 1
        assert not any(alive(pid) for pid in first.values())


def test_service_that_refuses_its_settings_ends_the_start(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    """The reason a service gives is what the user reads, with exit code 2 and nothing left."""
    layers = tmp_path / "plan.json"
    LayerPlan(skip_mlp=frozenset({99})).save(layers)
    with up(tmp_path, tiny_model_dir, "--layer-plan", str(layers)) as running:
        assert running.process.wait(200) == 2
        said = running.err.read_text()
        assert "the drafter ended with exit code 2" in said
        assert "layers [99] do not exist" in said
        assert "Traceback" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="looks at children through /proc")
def test_a_drafter_in_two_shards(tmp_path: Path, tiny_model_dir: Path) -> None:
    """`--drafter-shards 2` serves with two drafter processes, and with one of them killed."""
    options = ["--served-model-name", "tiny", "--kv-cache-gib", "0.05", "--dtype", "float32"]
    with up(tmp_path, tiny_model_dir, *options, "--drafter-shards", "2") as running:
        url = running.url()
        text = complete(url, ignore_eos=True, speculative=False)
        assert complete(url, ignore_eos=True) == text
        killed = (None, running.shards()[1])
        os.kill(running.shards()[1], signal.SIGKILL)
        assert complete(url, ignore_eos=True) == text
        wait_for(lambda: running.shards().get(1) not in killed, 60, running.err.read_text)
        wait_for(lambda: set(running.shards()) == {0, 1}, 60, running.err.read_text)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(60) == 0
        assert "the drafter shard 1 was ended by SIGKILL" in running.err.read_text()
