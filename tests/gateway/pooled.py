"""The generation core before several fake verifiers, without the front doors."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.continuation import Piece
from gateway.course import Course
from gateway.generation import GenerationService
from gateway.metrics import Metrics
from gateway.request import GenerationRequest
from gateway.tokenizer import Tokenizer
from gateway.verifiers.pool import VerifierPool
from gateway.verifiers.served import Limits
from slipstream.core.params import SamplingParams
from slipstream.discovery.endpoints import Endpoints
from slipstream.discovery.zone import Zone
from slipstream.wire.fakes import FakeVerifier
from slipstream.wire.proto import types_pb2, verifier_pb2
from tests.gateway.conftest import eventually

_numbers = itertools.count()


def fake_of(place: int, tokens: Any, own: Mapping[str, Any]) -> FakeVerifier:
    """A fake, not started, whose `kv_address` tells its place."""
    fields = {"model_id": "fake", "fingerprint": "f", "context_length": 256, "vocab_size": 512}
    fields |= {"eos_token_ids": [2], "kv_address": f"kv:{place}"} | dict(own)
    return FakeVerifier(tokens, verifier_pb2.GetModelResponse(**fields))


def past_message(tokens: Sequence[int]) -> verifier_pb2.GenerateResponse:
    return verifier_pb2.GenerateResponse(tokens=[types_pb2.Token(id=token) for token in tokens])


@dataclass
class Core:
    """A service, and the verifiers that its pool knows."""

    fakes: list[FakeVerifier]
    pool: VerifierPool
    service: GenerationService
    metrics: Metrics

    async def pieces(
        self, course: Course | None = None, prompt: Sequence[int] = (5, 6), **fields: Any
    ) -> AsyncIterator[Piece]:
        request = GenerationRequest(
            f"r{next(_numbers)}", (tuple(prompt),), SamplingParams(seed=0), **fields
        )
        async with contextlib.aclosing(self.service.run(request, course)) as pieces:
            async for piece in pieces:
                yield piece

    async def tokens(self, course: Course | None = None, **fields: Any) -> list[int]:
        """Of a request with one continuation, once it has ended."""
        found = []
        async for piece in self.pieces(course, **fields):
            found += [token.id for token in piece.tokens]
        return found

    async def until_states(self, **wanted: int) -> None:
        """Until so many verifiers are in each state, and no others."""
        full = dict.fromkeys(("serving", "draining", "lost", "other_model"), 0) | wanted

        def states():
            return {key.replace(" ", "_"): value for key, value in self.pool.states().items()}

        await eventually(lambda: states() == full)

    async def tell(self) -> None:
        """Lets the pool hear from all of them now, however long that takes."""
        await asyncio.gather(*(link.beat(20) for link in self.pool._links.values()))

    def strict(self, which: FakeVerifier | str, **limits: float) -> None:
        """From now on this one, or the one at that address, has other limits: those of the others
        are such that a busy machine does not trip them."""
        address = which if isinstance(which, str) else which.address
        link = self.pool._links[address]
        link._limits = replace(self.pool.limits, **limits)
        link._lost_after = link._limits.lost_after
        link._beat_seconds = min(1.0, link._lost_after / 4)

    def requests(self) -> list[int]:
        """How many each verifier was sent."""
        return [len(fake.requests) for fake in self.fakes]


@contextlib.asynccontextmanager
async def core(
    tokenizer: Tokenizer,
    tokens: Any = (5, 6, 7),
    fakes: Sequence[Mapping[str, Any]] = ({}, {}),
    *,
    zone: str = "",
    spec: str = "",
    **limits: Any,
) -> AsyncIterator[Core]:
    """Fakes that differ in what is theirs of GetModel's answer; all serve when it begins.

    Args:
        spec: of the endpoints, in the place of all their addresses; then nobody is waited for.
    """
    async with contextlib.AsyncExitStack() as stack:
        made = [fake_of(place, tokens, own) for place, own in enumerate(fakes)]
        for fake in made:
            await stack.enter_async_context(fake)
        endpoints = Endpoints(spec or ",".join(fake.address for fake in made), "--verifier")
        wanted = {"failover": 60.0, "failovers": 5} | limits
        pool, metrics = VerifierPool(endpoints, Limits(**wanted), zone=Zone(zone)), Metrics()
        stack.push_async_callback(pool.close)
        service = GenerationService("m", tokenizer, pool, metrics)
        pool.start()
        found = Core(made, pool, service, metrics)
        if not spec:
            await eventually(lambda: sum(pool.states().values()) == len(made))
            await eventually(lambda: not pool.states()["lost"])
        yield found
        await eventually(lambda: not pool.calls)
