"""A drafter without a model, to test verifiers against: one that is wrong, silent, late or rude.

async with FakeDrafter(DrafterBehaviour(random_tokens())) as drafter:
    ...  # python -m verifier_service --drafter {drafter.address}

Whatever it does, a verifier's answers must be those of plain decoding.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import grpc

from slipstream.core.draft import Close, Command, Commit, Open, Proposal, SetWindow
from slipstream.core.errors import InvalidRequest, SlipstreamError
from slipstream.core.prefix import PrefixChain, salted
from slipstream.wire import status
from slipstream.wire.draft_codec import command_from_proto, response_to_proto
from slipstream.wire.proto import drafter_pb2, drafter_pb2_grpc
from slipstream.wire.transport import Server

# Takes the tokens so far, how many drafts are wanted, and the size of the vocabulary.
Propose = Callable[[Sequence[int], int, int], Sequence[int]]
_SERVICE = "slipstream.v1.DrafterService"
# A flood leaves the reader a turn, and the machine some air, after so many messages.
_FLOOD_MESSAGES = 64


def random_tokens(seed: int = 0) -> Propose:
    """Proposes tokens that have nothing to do with the sequence."""
    source = random.Random(seed)
    return lambda _tokens, count, vocab: [source.randrange(vocab) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class DrafterBehaviour:
    """How the fake drafts.

    Attributes:
        propose: the drafts, a whole window after each opening and commit; None: stays silent.
        answers: False takes the stream and never says hello.
        lag: proposals name the prefix that the sequence had so many commits before.
        flood: goes on proposing, without a commit, beyond the window, for closed sequences too.
        delay: seconds before each proposal.
        step_seconds: what it claims a draft costs it.
        host, cores: where it says that it computes; no cores: on a device of its own.
    """

    propose: Propose | None = None
    answers: bool = True
    lag: int = 0
    flood: bool = False
    delay: float = 0.0
    step_seconds: float = 0.0001
    host: str = ""
    cores: tuple[int, ...] = ()


@dataclass(slots=True)
class _Open:
    """A sequence as far as the verifier has told of it; `heard` are its lengths at each word."""

    number: int
    tokens: list[int]
    chain: PrefixChain
    window: int
    heard: list[int] = field(default_factory=list)


class FakeDrafter(drafter_pb2_grpc.DrafterServiceServicer):
    """Serves DrafterService on a free port, for any model. `behaviour` may be replaced.

    Attributes:
        address: once started.
        connections: streams that were opened.
        commands: every command received after a hello, in order.
        proposed: draft tokens sent.
    """

    def __init__(self, behaviour: DrafterBehaviour) -> None:
        self.behaviour = behaviour
        self.address = ""
        self.connections = 0
        self.commands: list[Command] = []
        self.proposed = 0
        self._server: Server | None = None

    async def start(self, address: str = "127.0.0.1:0") -> str:
        """Serves; returns the address."""
        server = Server(address, [_SERVICE])
        drafter_pb2_grpc.add_DrafterServiceServicer_to_server(self, server.grpc)
        port = await server.start()
        await server.set_serving(True)
        self._server = server
        self.address = f"{address.rpartition(':')[0]}:{port}"
        return self.address

    async def stop(self) -> None:
        """Cuts every stream, as a killed process would."""
        if self._server is not None:
            await self._server.stop(grace=0)
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @status.unary
    async def GetDrafter(self, request: Any, context: Any) -> drafter_pb2.GetDrafterResponse:  # noqa: N802, ARG002
        return drafter_pb2.GetDrafterResponse(layer_plan="a fake has no model")

    @status.streaming
    async def Draft(  # noqa: N802
        self,
        request_iterator: AsyncIterator[drafter_pb2.DraftRequest],
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002
    ) -> AsyncIterator[drafter_pb2.DraftResponse]:
        self.connections += 1
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or not first.commands or not first.commands[0].HasField("hello"):
            raise InvalidRequest("the first command of a draft stream must be a hello")
        if not self.behaviour.answers:
            await asyncio.Event().wait()
        hello = first.commands[0].hello
        yield drafter_pb2.DraftResponse(
            hello=drafter_pb2.Hello(
                model_fingerprint=hello.model_fingerprint,
                vocab_size=hello.vocab_size,
                incarnation="fake",
                host=self.behaviour.host,
                cores=self.behaviour.cores,
            )
        )
        inbox: asyncio.Queue[drafter_pb2.DraftRequest | None] = asyncio.Queue()
        reader = asyncio.create_task(_read(requests, inbox))
        try:
            async for message in self._converse(hello, inbox):
                yield message
        finally:
            reader.cancel()

    async def _converse(
        self, hello: drafter_pb2.Hello, inbox: asyncio.Queue[drafter_pb2.DraftRequest | None]
    ) -> AsyncIterator[drafter_pb2.DraftResponse]:
        """Answers requests until the stream ends."""
        known: dict[int, _Open] = {}
        for count in itertools.count():
            if self.behaviour.flood and known and inbox.empty():
                if count % _FLOOD_MESSAGES == 0:
                    await asyncio.sleep(0.001)
                yield self._drafts(known.values(), hello.vocab_size)
                continue
            request = await inbox.get()
            if request is None:
                return
            commands = [command_from_proto(command) for command in request.commands]
            self.commands += commands
            told = [each for c in commands if (each := self._obey(known, c, hello)) is not None]
            if told and self.behaviour.propose is not None:
                await asyncio.sleep(self.behaviour.delay)
                # One word each, however many commits came together.
                latest = {each.number: each for each in told}
                yield self._drafts(latest.values(), hello.vocab_size)

    def _obey(
        self, known: dict[int, _Open], command: Command, hello: drafter_pb2.Hello
    ) -> _Open | None:
        """Follows the verifier; returns the sequence if it now waits for drafts."""
        if isinstance(command, Open):
            salt = salted(hello.model_fingerprint, command.cache_salt)
            chain = PrefixChain(salt, command.tokens)
            each = _Open(command.sequence_id, list(command.tokens), chain, command.window)
            known[each.number] = each
        elif isinstance(command, Commit | SetWindow) and command.sequence_id in known:
            each = known[command.sequence_id]
            if isinstance(command, Commit):
                each.tokens += command.tokens
                each.chain.extend(command.tokens)
            else:
                each.window = command.window
        else:
            if isinstance(command, Close) and not self.behaviour.flood:
                known.pop(command.sequence_id, None)
            return None
        each.heard.append(len(each.tokens))
        return each

    def _drafts(self, sequences: Iterable[_Open], vocab: int) -> drafter_pb2.DraftResponse:
        behaviour = self.behaviour
        proposals = []
        for each in sequences:
            window = 64 if behaviour.flood else each.window
            if behaviour.propose is None or not window:
                continue
            length = each.heard[max(0, len(each.heard) - 1 - behaviour.lag)]
            tokens = tuple(behaviour.propose(each.tokens[:length], window, vocab))
            self.proposed += len(tokens)
            prefix, known = each.chain.at(length), len(each.tokens)
            proposals.append(Proposal(each.number, prefix, tokens, paused=True, committed=known))
        return response_to_proto(proposals, [], behaviour.step_seconds)


async def _read(
    requests: AsyncIterator[drafter_pb2.DraftRequest],
    inbox: asyncio.Queue[drafter_pb2.DraftRequest | None],
) -> None:
    with contextlib.suppress(grpc.RpcError, SlipstreamError):
        async for request in requests:
            inbox.put_nowait(request)
    inbox.put_nowait(None)
