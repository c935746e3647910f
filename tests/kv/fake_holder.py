"""A KvService that says whatever a test wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from slipstream.core.prefix import PrefixChain
from slipstream.engine.kv_pool import BLOCK_TOKENS
from slipstream.engine.runner import ModelRunner
from slipstream.wire.proto import kv_pb2, kv_pb2_grpc, types_pb2
from slipstream.wire.transport import Server


@dataclass
class FakeHolder(kv_pb2_grpc.KvServiceServicer):
    """Zeros for keys and values, in chunks of 8 positions.

    Attributes:
        breaks_after: chunks until the stream breaks; None never. `may_break`: not before it is set.
        pace: seconds between two chunks.
        handle: fields of the handle that differ from the truth.
        answer: fields of every chunk that do.
        acquired, released: calls so far.
        waits: who asks for a lease gets it when this is set.
    """

    runner: ModelRunner
    breaks_after: int | None = None
    may_break: asyncio.Event | None = None
    pace: float = 0.0
    handle: dict[str, object] = field(default_factory=dict)
    answer: dict[str, object] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    acquired: int = 0
    released: int = 0
    waits: asyncio.Event | None = None

    async def Acquire(self, request, context):  # noqa: N802 gRPC's name
        self.acquired += 1
        if self.waits is not None:
            await self.waits.wait()
        loaded, pool = self.runner.loaded, self.runner.pool
        prefix = request.prefix
        if request.block_hashes:
            names = request.block_hashes
            prefix = types_pb2.Prefix(length=len(names) * BLOCK_TOKENS, hash=names[-1])
        truth = {
            "id": "1",
            "model_fingerprint": request.model_fingerprint,
            "prefix": prefix,
            "layers": loaded.kv_layers,
            "dtype": "float32",
            "num_kv_heads": pool.num_kv_heads,
            "head_dim": pool.head_dim,
            "holder": "fake",
            "incarnation": "fake",
            "expiry_unix_ms": int(time.time() * 1000) + 10_000,
        }
        return kv_pb2.AcquireResponse(handle=kv_pb2.KvHandle(**(truth | self.handle)))

    async def Release(self, request, context):  # noqa: N802
        self.released += 1
        return kv_pb2.ReleaseResponse()

    async def Pull(self, request, context):  # noqa: N802
        chain = PrefixChain(self.runner.loaded.fingerprint, self.tokens)
        pool = self.runner.pool
        row = len(request.layers) * 2 * pool.num_kv_heads * pool.head_dim * 4
        for number, start in enumerate(range(request.start, request.end, 8)):
            if number == self.breaks_after:
                if self.may_break is not None:
                    await self.may_break.wait()
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the line was cut")
            end = min(start + 8, request.end)
            name = chain.at(end)
            truth = {
                "start": start,
                "end": end,
                "prefix": types_pb2.Prefix(length=end, hash=name.hash),
                "layers": request.layers,
                "dtype": "float32",
                "data": bytes((end - start) * row),
            }
            yield kv_pb2.PullResponse(**(truth | self.answer))
            await asyncio.sleep(self.pace)


@asynccontextmanager
async def fake_holder(runner: ModelRunner, **how: object) -> AsyncIterator[tuple[FakeHolder, str]]:
    """The holder and its address."""
    fake = FakeHolder(runner, **how)  # type: ignore[arg-type]
    server = Server("127.0.0.1:0", ["slipstream.v1.KvService"])
    kv_pb2_grpc.add_KvServiceServicer_to_server(fake, server.grpc)
    port = await server.start()
    try:
        yield fake, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
