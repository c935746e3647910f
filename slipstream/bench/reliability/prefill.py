"""How long a verifier takes to the first token of a prompt, asked directly."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from slipstream.bench.load.doors import clock
from slipstream.bench.services import Verifier
from slipstream.core.errors import InternalError
from slipstream.wire.proto import types_pb2, verifier_pb2
from slipstream.wire.status import error_of

_CALL_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class First:
    """A first token.

    Attributes:
        seconds: until it was here.
        cached: of the prompt's tokens, those that were not computed for it.
    """

    seconds: float
    cached: int


async def first_token(
    verifier: Verifier,
    prompt: Sequence[int],
    salt: str = "",
    *,
    holder: str = "",
    tokens: int = 1,
) -> First:
    """A greedy generation on an idle verifier, without drafts.

    Args:
        salt: of the prefix cache; empty: a new one, so that nothing of the prompt is there.
        holder: a KvService that may have the prompt's keys and values.
        tokens: how many to generate; the prefix cache has them, too, then.

    Raises:
        SlipstreamError: the verifier did not become idle, or refused it.
    """
    request = verifier_pb2.GenerateRequest(
        prompt_token_ids=prompt,
        sampling=types_pb2.SamplingParams(temperature=0.0, seed=0),
        stop=types_pb2.StopConditions(max_tokens=tokens, ignore_eos=True),
        speculative=False,
        cache_salt=salt or secrets.token_hex(8),
        kv_holder=holder,
    )
    await verifier.wait_until_idle()
    start = clock()
    found: First | None = None
    try:
        async for message in verifier.stub.Generate(request, timeout=_CALL_SECONDS):
            if message.tokens and found is None:
                found = First(clock() - start, message.cached_prompt_tokens)
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from failure
    if found is None:
        raise InternalError("the verifier's stream ended without a token")
    await verifier.wait_until_idle()
    return found
