"""Where keys and values are pulled from: a verifier's KvService, and why that failed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from slipstream.core.errors import (
    Cancelled,
    DeadlineExceeded,
    KvExpired,
    KvHolderRestarted,
    KvNotFound,
    ModelMismatch,
    Overloaded,
    SlipstreamError,
    Unavailable,
)
from slipstream.core.kv import KvChunk, KvHandle
from slipstream.core.prefix import Prefix
from slipstream.engine.runner import ModelRunner
from slipstream.wire.kv_client import KvClient

log = logging.getLogger(__name__)
T = TypeVar("T")
# From the lease to the beginning of its pull, which keeps it. A puller that died has it so long.
_LEASE_SECONDS = 10.0
# Drafts are of no use before the verifier has computed the prompt, so until its first commit
# nothing is lost by waiting, however long it queues.
_MOST_PULL_SECONDS = 600.0
_GOODBYE_SECONDS = 1.0
_REASONS: dict[type[SlipstreamError], str] = {
    KvExpired: "expired",
    KvHolderRestarted: "restarted",
    KvNotFound: "not_found",
    ModelMismatch: "model_mismatch",
    Overloaded: "overloaded",
    Unavailable: "cut",
    Cancelled: "cut",
    DeadlineExceeded: "slow",
}


@dataclass(frozen=True, slots=True)
class Want:
    """What is wanted of a verifier's sequence.

    Attributes:
        sequence_id: the verifier's number for it.
        prefix: of the positions to pull.
        follow: go on with what it commits.
    """

    sequence_id: int
    prefix: Prefix
    follow: bool


class Source:
    """A verifier that holds keys and values, and the pulls from it. Of the event loop."""

    def __init__(self, runner: ModelRunner, address: str, *, share_memory: bool) -> None:
        self._runner = runner
        self._client = KvClient(address, share_memory=share_memory)
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def idle(self) -> bool:
        return not self._tasks

    def pull(
        self, want: Want, arrived: Callable[[KvChunk], None], ended: Callable[[str], None]
    ) -> asyncio.Task[None]:
        """Pulls the layers that the model keeps.

        Args:
            arrived: takes the chunks, in order.
            ended: takes the reason of a failure, or nothing; not called where it is cancelled.
        """
        return self._run(self._pull(want, arrived, ended))

    async def close(self) -> None:
        """Ends what is under way, gives leases back, then closes the channel: gRPC is not safe to
        close below a running call."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        await self._client.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _pull(
        self, want: Want, arrived: Callable[[KvChunk], None], ended: Callable[[str], None]
    ) -> None:
        reason, handle = "", None
        try:
            async with asyncio.timeout(_MOST_PULL_SECONDS) as limit:
                handle = await self._acquire(want)
                self._check(handle)
                layers, end = self._runner.loaded.kv_layers, want.prefix.length
                pull = self._client.pull(handle, layers, 0, end, follow=want.follow)
                async with contextlib.aclosing(pull) as chunks:
                    async for chunk in chunks:
                        if chunk.end >= end:
                            # What follows comes for as long as the sequence lives.
                            limit.reschedule(None)
                        arrived(chunk)
        except SlipstreamError as failure:
            reason = _REASONS.get(type(failure), "failed")
            log.log(
                logging.WARNING if reason in ("failed", "model_mismatch") else logging.INFO,
                "no context for the verifier's sequence %d: %s", want.sequence_id, failure.message,
            )  # fmt: skip
        except TimeoutError:
            reason = "slow"
        except Exception:
            log.exception("fetching the context of sequence %d failed", want.sequence_id)
            reason = "failed"
        finally:
            if handle is not None:
                self._run(self._release(handle))
        ended(reason)

    async def _acquire(self, want: Want) -> KvHandle:
        """A lease; where it comes after its sequence has ended it goes straight back.

        A call that is cancelled may have been granted, and then nobody would know what to release.
        """
        asked = self._run(
            self._client.acquire(
                self._runner.loaded.fingerprint,
                want.prefix,
                sequence_id=want.sequence_id,
                lease_seconds=_LEASE_SECONDS,
            )
        )
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(self._give_back)
            raise

    def _give_back(self, asked: asyncio.Task[KvHandle]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self._run(self._release(asked.result()))

    async def _release(self, handle: KvHandle) -> None:
        with contextlib.suppress(SlipstreamError):
            await self._client.release(handle)

    def _check(self, handle: KvHandle) -> None:
        """Raises ModelMismatch where the handle's keys and values are not of our model's shape."""
        pool, loaded = self._runner.pool, self._runner.loaded
        same = handle.model_fingerprint == loaded.fingerprint
        shape = (handle.num_kv_heads, handle.head_dim) == (pool.num_kv_heads, pool.head_dim)
        if not (same and shape and set(loaded.kv_layers) <= set(handle.layers)):
            raise ModelMismatch(f"{handle.holder} holds keys and values of another model")
