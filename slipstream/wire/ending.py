"""What a call with streamed requests ended with, kept from gRPC's own errors.

A write to a call that the server has just ended fails, and gRPC then puts "Internal error from
Core" in the place of the status that the server sent: for the writer, and for all who read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, NamedTuple

import grpc

# The details of the status that gRPC makes of a failed write.
WRITE_FAILED = "Internal error from Core"
# The server's status is there already or follows at once, except behind messages that nobody reads.
_WAIT_SECONDS = 1.0
_POLL_SECONDS = 0.005


class Status(NamedTuple):
    """How a call ended."""

    code: grpc.StatusCode
    details: Any
    trailers: grpc.aio.Metadata

    def error(self) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(self.code, grpc.aio.Metadata(), self.trailers, self.details)


class Ending:
    """Watches the end of `call`, a call of grpc.aio that streams its requests."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._status: Status | None = None
        call.add_done_callback(self._note)

    def _note(self, call: Any) -> None:
        """Takes the first status: a later one is that of a failed write."""
        status = _at_once(status_of(call))
        if status.details != WRITE_FAILED:
            self._status = status

    async def status(self) -> Status:
        """Waits for the end. The server's status, or that of a failed write if no other follows."""
        status = self._status or await status_of(self._call)
        if self._status is None and status.details == WRITE_FAILED:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WAIT_SECONDS):
                    while status.details == WRITE_FAILED:
                        await asyncio.sleep(_POLL_SECONDS)
                        status = await status_of(self._call)
        # gRPC's callbacks are called at its first status alone.
        return self._status or status


async def status_of(call: Any) -> Status:
    return Status(await call.code(), await call.details(), await call.trailing_metadata())


def _at_once(waiting: Coroutine[Any, Any, Status]) -> Status:
    """What a coroutine returns that has nothing to wait for."""
    try:
        waiting.send(None)
    except StopIteration as returned:
        status: Status = returned.value
        return status
    raise AssertionError("a call that has ended has a status")
