"""The verifier's stream to a drafter: connects, says who it is, and comes back after a loss."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time

import grpc

from slipstream.core.draft import Command
from slipstream.core.errors import InternalError, SlipstreamError, Unavailable
from slipstream.wire.draft_codec import (
    command_to_proto,
    proposals_from_proto,
    refusals_from_proto,
)
from slipstream.wire.mailbox import Mailbox
from slipstream.wire.proto import drafter_pb2, drafter_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel
from verifier_service.drafter_choice import NO_DRAFTER, DrafterChoice, no_drafter
from verifier_service.engine import VerifierEngine
from verifier_service.layouts import Drafter
from verifier_service.rounds import Rounds

log = logging.getLogger(__name__)
_HELLO_TIMEOUT_SECONDS = 10.0
_FIRST_BACKOFF_SECONDS = 0.2
_MOST_BACKOFF_SECONDS = 2.0
_PATIENCE_SECONDS = 30.0
_LASTING_SECONDS = 0.5


class DrafterLink:
    """Keeps one stream open to a drafter, the same one for as long as it lives. Lives on the event
    loop; `send` is for any thread.

    Args:
        choice: of the drafters that there may be.
        hello: says who we are.
        mailbox: brings what `send` takes to the event loop.
        rounds: is told what goes out and what comes back.

    Attributes:
        connected: whether a drafter has accepted us; `address`, which one.
        detail: why there is none, where there is none.
        connections: how many times one has.
        draft_step_seconds: what the drafter last said of its own speed.
    """

    def __init__(
        self, choice: DrafterChoice, hello: drafter_pb2.Hello, mailbox: Mailbox, rounds: Rounds
    ) -> None:
        self.connected = False
        self.address = ""
        self.detail = "not connected yet"
        self.connections = 0
        self.draft_step_seconds = 0.0
        self._choice = choice
        self._hello = hello
        self._numbers = itertools.count(1)
        self._number = 0
        self._outbox: asyncio.Queue[list[Command]] = asyncio.Queue()
        self._mailbox = mailbox
        self.rounds = rounds
        self._connected_at = 0.0
        self._absent_before = 0.0
        self._absent_since: float | None = time.monotonic()

    @property
    def absent_seconds(self) -> float:
        """How long there has been no drafter, in all."""
        since = self._absent_since
        return self._absent_before + (0.0 if since is None else time.monotonic() - since)

    def send(self, connection: int, commands: list[Command]) -> None:
        """Sends commands in order, if `connection` is still the current one."""
        self._mailbox.post(lambda: self._enqueue(connection, commands))

    def _enqueue(self, connection: int, commands: list[Command]) -> None:
        if connection == self._number:
            self._outbox.put_nowait(commands)

    async def run(self, engine: VerifierEngine) -> None:
        """Connects again and again until cancelled."""
        try:
            await self._run(engine)
        finally:
            await self._choice.close()

    async def _run(self, engine: VerifierEngine) -> None:
        backoff, started = _FIRST_BACKOFF_SECONDS, time.monotonic()
        while True:
            failure = await self._once(engine)
            if self.connected:
                engine.drafter_down(self._number)
                log.warning(
                    "drafter %s lost: %s; decoding goes on without", self.address, failure.message
                )
            elif failure.message != self.detail:
                # A drafter that starts beside us loads its model for some seconds.
                patient = time.monotonic() - started < _PATIENCE_SECONDS
                level = logging.INFO if patient else logging.WARNING
                log.log(level, "no drafter%s: %s", self._at, failure.message)
            # Where there are others the next one is tried at once; where that fails, too, later.
            at_once = self._lasted and self._choice.several
            backoff = _FIRST_BACKOFF_SECONDS if self.connected else backoff
            self._lost(failure)
            if not at_once:
                await self._choice.changed(backoff)
                backoff = min(backoff * 2, _MOST_BACKOFF_SECONDS)

    @property
    def _lasted(self) -> bool:
        """Whether the stream that has just ended was more than a hello and a goodbye."""
        return self.connected and time.monotonic() - self._connected_at > _LASTING_SECONDS

    @property
    def _at(self) -> str:
        return f" at {self.address}" if self.address else ""

    async def _once(self, engine: VerifierEngine) -> SlipstreamError:
        """One stream to the drafter that suits best. Returns why there is none (any more)."""
        self.address = ""
        try:
            self.address = await self._choice.best()
            async with channel(self.address) as link:
                await self._serve(link, engine)
            return Unavailable("the drafter ended the stream")
        except grpc.aio.AioRpcError as error:
            return self._shard() if error.code() is NO_DRAFTER else error_of(error)
        except SlipstreamError as error:
            return error
        except TimeoutError as error:
            return Unavailable(str(error) or "the drafter did not answer in time")
        except Exception as error:
            log.exception("the link to the drafter failed")
            return InternalError(f"internal error: {error}")

    def _shard(self) -> Unavailable:
        """The address is one of a row's shards that verifiers do not talk to."""
        self._choice.is_shard(self.address)
        return no_drafter()

    def _lost(self, failure: SlipstreamError) -> None:
        if self.address:
            self._choice.failed(self.address, failure)
        # What the engine still sends for the lost stream must not reach the next one.
        self._number = 0
        self.connected, self.detail, self.address = False, failure.message, ""
        self.rounds.lost()
        if self._absent_since is None:
            self._absent_since = time.monotonic()

    async def _serve(self, link: grpc.aio.Channel, engine: VerifierEngine) -> None:
        self._outbox = asyncio.Queue()
        stream = drafter_pb2_grpc.DrafterServiceStub(link).Draft()
        hello = drafter_pb2.DraftCommand(hello=self._hello)
        async with asyncio.timeout(_HELLO_TIMEOUT_SECONDS):
            await stream.write(drafter_pb2.DraftRequest(commands=[hello]))
            first = await stream.read()
        if first is grpc.aio.EOF:
            if await stream.code() is NO_DRAFTER:
                raise self._shard()
            raise Unavailable(await stream.details() or "the drafter ended the stream")
        self._number = next(self._numbers)
        self.connected, self.detail = True, ""
        self.connections += 1
        self._connected_at = time.monotonic()
        self._absent_before, self._absent_since = self.absent_seconds, None
        log.info("drafter %s connected", self.address)
        theirs = first.hello
        engine.drafter_up(self._number, Drafter(theirs.host, frozenset(theirs.cores)))
        writer = asyncio.create_task(self._write(stream))
        mover = asyncio.create_task(self._leave(stream))
        try:
            while (response := await stream.read()) is not grpc.aio.EOF:
                self.draft_step_seconds = response.draft_step_seconds
                proposals = proposals_from_proto(response)
                self.rounds.heard(proposals, response.computed_seconds)
                engine.deliver(
                    self._number,
                    proposals,
                    refusals_from_proto(response),
                    response.draft_step_seconds,
                )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling() or not mover.done():
                raise
            raise Unavailable("another drafter suits better") from None
        finally:
            writer.cancel()
            mover.cancel()
            stream.cancel()

    async def _leave(self, stream: grpc.aio.StreamStreamCall) -> None:
        """Ends the stream where another drafter suits better, above all as this one drains."""
        await self._choice.until_left_behind(self.address)
        stream.cancel()

    async def _write(self, stream: grpc.aio.StreamStreamCall) -> None:
        """Sends what the engine decided. Never waits for a proposal, so the two cannot deadlock."""
        while True:
            commands = await self._outbox.get()
            request = drafter_pb2.DraftRequest(
                commands=[command_to_proto(c) for c in commands],
                traceparent=self.rounds.sent(commands),
            )
            await stream.write(request)
