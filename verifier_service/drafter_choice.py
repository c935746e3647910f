"""Which of several drafters a verifier pairs with. On the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import grpc

from slipstream.core.errors import ModelMismatch, SlipstreamError, Unavailable
from slipstream.wire.endpoints import Endpoints
from slipstream.wire.host import host_id
from slipstream.wire.proto import drafter_pb2, drafter_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel

log = logging.getLogger(__name__)
_ASK_SECONDS = 1.0
# A drafter that was lost, or could not be had, is asked again after so long where there are others;
# one that has another model will hardly have ours soon.
_LOST_SECONDS, _REFUSED_SECONDS = 3.0, 30.0
# What gRPC answers where there is no such service.
NO_DRAFTER = grpc.StatusCode.UNIMPLEMENTED


@dataclass(frozen=True, slots=True)
class Drafters:
    """The drafters that there may be, and who asks for one.

    Attributes:
        zone: where the verifier runs; empty: not said.
        incarnation: of the verifier.
    """

    endpoints: Endpoints
    fingerprint: str
    zone: str = ""
    incarnation: str = ""


def no_drafter() -> Unavailable:
    """The error where no process that is known has a DrafterService."""
    return Unavailable("only shards behind a drafter's first one are there")


class DrafterChoice:
    """Asks all of them, and says which suits best.

    The same zone comes first: a round of commit and drafts has to fit into a step of a few
    milliseconds, of which a way to another zone takes much or all. Then the one that has the fewest
    verifiers, as those share its time; on one host a way is shorter by some tens of microseconds, a
    drafter shared by two by a draft or more. Then the same host, so that, where all start
    together, each takes the one beside it; then the one with the fewest sequences. Verifiers that
    see no difference spread by lot.

    Args:
        clock: seconds.
    """

    def __init__(self, drafters: Drafters, clock: Callable[[], float] = time.monotonic) -> None:
        self._drafters = drafters
        self._clock = clock
        self._left_out: dict[str, float] = {}
        # Shards behind a first one: a Service names the pods of a whole row.
        self._shards: dict[str, float] = {}
        self._several = False

    @property
    def several(self) -> bool:
        """Whether there were others to choose from, the last time."""
        return self._several

    async def best(self) -> str:
        """The address of the one to connect to. One that is alone is not asked before.

        Raises:
            Unavailable: there is none, or none that answers and may be had.
        """
        now = self._clock()
        self._shards = {address: at for address, at in self._shards.items() if at > now}
        listed = await self._drafters.endpoints.resolve()
        known = [address for address in listed if address not in self._shards]
        self._several = len(known) > 1
        if listed and not known:
            raise no_drafter()
        if not known:
            raise Unavailable(f"{self._drafters.endpoints} has no address")
        if not self._several:
            return known[0]
        self._left_out = {a: at for a, at in self._left_out.items() if at > now and a in known}
        # Rather one that was lost a moment ago than none.
        asked = [address for address in known if address not in self._left_out] or known
        ranks = await asyncio.gather(*(self._rank(address) for address in asked))
        able = sorted((rank, a) for rank, a in zip(ranks, asked, strict=True) if rank is not None)
        if not able and all(address in self._shards for address in listed):
            raise no_drafter()
        if not able:
            raise Unavailable(f"none of {', '.join(asked)} can be had")
        return able[0][1]

    def failed(self, address: str, why: SlipstreamError | None) -> None:
        """It was lost, or could not be had: for a while another one is better."""
        refused = isinstance(why, ModelMismatch)
        self._left_out[address] = self._clock() + (_REFUSED_SECONDS if refused else _LOST_SECONDS)

    def is_shard(self, address: str) -> None:
        """Nobody drafts there: it is not asked again soon, even where there is no other."""
        self._shards[address] = self._clock() + _REFUSED_SECONDS

    async def _rank(self, address: str) -> tuple[bool, int, bool, int, bytes] | None:
        """The lower, the better; None where it cannot be had."""
        try:
            async with channel(address) as link:
                stub = drafter_pb2_grpc.DrafterServiceStub(link)
                asked = drafter_pb2.GetDrafterRequest()
                reply = await stub.GetDrafter(asked, timeout=_ASK_SECONDS)
        except grpc.aio.AioRpcError as failure:
            log.debug("drafter %s: %s", address, error_of(failure).message)
            if failure.code() is NO_DRAFTER:
                self.is_shard(address)
            return None
        own = self._drafters
        # A drafter that names no model is asked when a stream begins.
        if reply.model_fingerprint not in ("", own.fingerprint):
            self.failed(address, refusal := ModelMismatch(f"drafter {address} has another model"))
            log.warning("%s: it must be the same model", refusal.message)
            return None
        lot = blake2b(f"{own.incarnation} {address}".encode(), digest_size=8).digest()
        abroad = bool(own.zone) and reply.zone != own.zone
        return abroad, reply.verifiers, reply.host != host_id(), reply.open_sequences, lot
