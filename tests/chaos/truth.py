"""What every request must be answered: asked of the undisturbed stack, one way, without drafts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import grpc

from slipstream.core.errors import InternalError
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel
from tests.chaos.answers import Choice, Truth, reason_of
from tests.chaos.asks import Ask, grpc_request
from tests.chaos.workload import Dialogue, Workload

_AT_ONCE = 8
_SECONDS = 120.0
_STOP_LENGTHS = (3, 2, 1)
# Stop strings are of whole characters.
_HALF = "\ufffd"
TextOf = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Known:
    """An ask as clients put it, with its stop string where it has one, and its answer."""

    ask: Ask
    truth: Truth


async def truths(address: str, workload: Workload, text_of: TextOf) -> dict[str, Known]:
    """The answers to all asks and all turns, by name.

    Args:
        address: of a gateway's gRPC door.
        text_of: a token's text, as log probabilities name it.

    Raises:
        SlipstreamError: an answer could not be had, though nothing was disturbed.
    """
    places = asyncio.Semaphore(_AT_ONCE)
    async with channel(address) as link:
        asker = _Asker(gateway_pb2_grpc.GatewayServiceStub(link), text_of)

        async def of_ask(ask: Ask) -> list[Known]:
            async with places:
                return [await asker.known(ask)]

        async def of_dialogue(dialogue: Dialogue) -> list[Known]:
            async with places:
                return await _play(asker, dialogue)

        works = [*map(of_ask, workload.asks), *map(of_dialogue, workload.dialogues)]
        found = await asyncio.gather(*works)
    return {known.ask.name: known for some in found for known in some}


class _Asker:
    """Asks a gateway, and expects an answer."""

    def __init__(self, stub: gateway_pb2_grpc.GatewayServiceStub, text_of: TextOf) -> None:
        self._stub = stub
        self._text_of = text_of

    async def known(self, ask: Ask) -> Known:
        """Raises as `truth` does."""
        if ask.stop_at is not None:
            whole = await self.truth(replace(ask, n=1))
            ask = replace(ask, stop=stop_strings(whole.choices[0].text, ask.stop_at))
        return Known(ask, await self.truth(ask))

    async def truth(self, ask: Ask) -> Truth:
        """Raises InternalError, and what the gateway does."""
        request = grpc_request(ask, speculative=False, cache_salt="truth")
        heard: list[list[gateway_pb2.GatewayServiceGenerateResponse]] = [[] for _ in range(ask.n)]
        try:
            async for message in self._stub.Generate(request, timeout=_SECONDS):
                heard[message.index].append(message)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        if not all(messages and messages[-1].finish_reason for messages in heard):
            raise InternalError(f"{ask.name} has no end, though nothing is disturbed")
        choices = tuple(self._choice(messages, ask) for messages in heard)
        return Truth(choices, heard[0][-1].usage.prompt_tokens)

    def _choice(
        self, messages: Sequence[gateway_pb2.GatewayServiceGenerateResponse], ask: Ask
    ) -> Choice:
        tokens = [token for message in messages for token in message.tokens]
        ids = tuple(token.id for token in tokens)
        return Choice(
            text="".join(message.text for message in messages),
            token_ids=ids,
            token_texts=tuple(map(self._text_of, ids)),
            logprobs=() if ask.logprobs is None else tuple(token.logprob for token in tokens),
            finish_reason=reason_of(messages[-1]),
            tokens=messages[-1].usage.completion_tokens,
        )


async def _play(asker: _Asker, dialogue: Dialogue) -> list[Known]:
    """Each turn as a request with all that was said before. The ask that is kept says only what is
    new. Raises as `_Asker.truth` does."""
    said: tuple[tuple[str, str], ...] = ()
    found = []
    for turn in dialogue.turns:
        said = (*said, *turn.prompt)
        truth = await asker.truth(replace(turn, prompt=said))
        said = (*said, ("assistant", truth.choices[0].text))
        found.append(Known(turn, truth))
    return found


def stop_strings(text: str, part: float) -> tuple[str, ...]:
    """A stop string that first comes at about this part of a text; none where all begin sooner."""
    start = int(part * len(text))
    for at in range(start, len(text)):
        for length in _STOP_LENGTHS:
            stop = text[at : at + length]
            if _HALF not in stop and text.find(stop) > start // 2:
                return (stop,)
    return ()


def resolved(workload: Workload, known: Mapping[str, Known]) -> Workload:
    """The same jobs, with the stop strings that the truth has chosen."""
    return replace(
        workload,
        jobs=tuple(
            replace(job, work=known[job.work.name].ask) if isinstance(job.work, Ask) else job
            for job in workload.jobs
        ),
    )
