"""A gateway before a verifier without a model, whose answers follow from prompt, seed and place."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.server import serving
from gateway.settings import Settings
from slipstream.bench.load.asks import Dialogue
from slipstream.bench.load.doors import GrpcDoor, HttpDoor, grpc_door, http_door
from slipstream.core.params import SamplingParams
from slipstream.wire.fakes import FakeBehaviour, FakeVerifier
from slipstream.wire.proto import verifier_pb2

DIALOGUES = (
    Dialogue("one", "qa", ("the quick brown fox",), (6,)),
    Dialogue("two", "chat", ("a verifier", "and then?", "numbers"), (4, 9, 5), 0.8, 7),
    Dialogue("three", "rag", ("jumps over the lazy dog",), (12,)),
)
MODEL = verifier_pb2.GetModelResponse(
    model_id="fake",
    fingerprint="f" * 32,
    context_length=1024,
    vocab_size=384,
    eos_token_ids=[2],
    dtype="float32",
    precision="native",
    exactness="strict",
)


def answer(prompt: Sequence[int], params: SamplingParams, place: int) -> int:
    """Any token but the special ones."""
    return 40 + (sum(prompt) * 31 + params.seed * 7 + place * place * 13) % 300


@dataclass(frozen=True, slots=True)
class Served:
    fake: FakeVerifier
    url: str
    grpc: str
    door: GrpcDoor
    http: HttpDoor


@pytest.fixture
async def served(tiny_model_dir: Path) -> AsyncIterator[Served]:
    behaviour = FakeBehaviour(answer, chunks=(1, 3), delay=0.001)
    async with contextlib.AsyncExitStack() as exits:
        fake = await exits.enter_async_context(FakeVerifier(behaviour, MODEL))
        settings = Settings(
            model=tiny_model_dir,
            served_model_name="tiny",
            verifier=fake.address,
            http="127.0.0.1:0",
            grpc="127.0.0.1:0",
            stop_grace=0.2,
        )
        running = await exits.enter_async_context(serving(settings))
        url, grpc = f"http://127.0.0.1:{running.http_port}", f"127.0.0.1:{running.grpc_port}"
        door = await exits.enter_async_context(grpc_door(grpc))
        http = await exits.enter_async_context(http_door(url, "tiny"))
        async with asyncio.timeout(60):
            while (await http.client.get("/ready")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield Served(fake, url, grpc, door, http)
