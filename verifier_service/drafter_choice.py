"""Which of several drafters a verifier pairs with. On the event loop."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import grpc

from slipstream.core.errors import ModelMismatch, SlipstreamError, Unavailable
from slipstream.discovery.endpoints import Endpoints
from slipstream.discovery.slices import Endpoint
from slipstream.discovery.zone import Zone
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
# Between two looks at whether the own one is still listed; a Service of Kubernetes tells by itself.
_LOOK_SECONDS = 5.0
# Within which verifiers look at a drafter that has appeared.
_SPREAD_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Drafters:
    """The drafters that there may be, and who asks for one.

    Attributes:
        zone: where the verifier runs; without a name: not said.
        incarnation: of the verifier.
    """

    endpoints: Endpoints
    fingerprint: str
    zone: Zone = field(default_factory=Zone)
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
        self._seen = 0
        self._listed: set[str] = set()

    @property
    def several(self) -> bool:
        """Whether there were others to choose from, the last time."""
        return self._several

    async def best(self) -> str:
        """The address of the one to connect to. One that is alone is not asked before.

        Raises:
            Unavailable: there is none, or none that answers and may be had.
        """
        self._seen = self._drafters.endpoints.changes
        listed = await self._usable()
        self._listed = set(listed)
        known = self._without_shards(listed)
        self._several = len(known) > 1
        if listed and not known:
            raise no_drafter()
        if not known:
            raise Unavailable(self._nobody())
        if not self._several:
            return next(iter(known))
        now = self._clock()
        self._left_out = {a: at for a, at in self._left_out.items() if at > now and a in known}
        # Rather one that was lost a moment ago than none.
        asked = [address for address in known if address not in self._left_out] or list(known)
        ranks = await asyncio.gather(*(self._rank(known[address]) for address in asked))
        able = sorted((rank, a) for rank, a in zip(ranks, asked, strict=True) if rank is not None)
        if not able and not self._without_shards(listed):
            raise no_drafter()
        if not able:
            raise Unavailable(f"none of {', '.join(asked)} can be had")
        return able[0][1]

    async def changed(self, seconds: float) -> None:
        """Waits until there may be others than the last time, for so many seconds at most."""
        await self._drafters.endpoints.changed(self._seen, seconds)

    async def until_left_behind(self, address: str) -> None:
        """Waits until the drafter there drains, or is not listed any more, and there is another; or
        until another one appears that is nearer, or whose share for us would be clearly larger.

        For ever, where the drafters are listed one by one.
        """
        # One that has appeared since `best` was not among what that chose from.
        endpoints, before = self._drafters.endpoints, self._listed
        while True:
            seen, listed = endpoints.changes, await self._usable()
            if address not in listed and self._without_shards(listed):
                return
            if before and set(listed) - before and await self._outdone(address):
                return
            before = set(listed)
            await endpoints.changed(seen, _LOOK_SECONDS)

    async def _outdone(self, address: str) -> bool:
        # One verifier after the other: each that moves changes what is best for the next.
        await asyncio.sleep(random.uniform(0.0, _SPREAD_SECONDS))
        known = await self._usable()
        ranks = await asyncio.gather(*(self._rank(endpoint) for endpoint in known.values()))
        able = {a: rank for a, rank in zip(known, ranks, strict=True) if rank is not None}
        own, others = able.pop(address, None), able.values()
        return own is not None and any((r[0], r[1] + 1) < (own[0], own[1]) for r in others)

    async def close(self) -> None:
        """Nothing is followed any more."""
        await self._drafters.endpoints.close()

    async def _usable(self) -> dict[str, Endpoint]:
        """Those that do not drain, by address."""
        known = await self._drafters.endpoints.resolve()
        return {endpoint.address: endpoint for endpoint in known if not endpoint.draining}

    def _without_shards(self, known: Mapping[str, Endpoint]) -> dict[str, Endpoint]:
        now = self._clock()
        self._shards = {address: at for address, at in self._shards.items() if at > now}
        return {a: endpoint for a, endpoint in known.items() if a not in self._shards}

    def _nobody(self) -> str:
        """Why there is none. That a Service has no pods is no fault."""
        said = [one.short for one in self._drafters.endpoints.describe() if one.short]
        why = f" ({'; '.join(said)})" if said else ""
        return f"{self._drafters.endpoints} has no drafter now{why}"

    def failed(self, address: str, why: SlipstreamError | None) -> None:
        """It was lost, or could not be had: for a while another one is better."""
        refused = isinstance(why, ModelMismatch)
        self._left_out[address] = self._clock() + (_REFUSED_SECONDS if refused else _LOST_SECONDS)

    def is_shard(self, address: str) -> None:
        """Nobody drafts there: it is not asked again soon, even where there is no other."""
        self._shards[address] = self._clock() + _REFUSED_SECONDS

    async def _rank(self, endpoint: Endpoint) -> tuple[bool, int, bool, int, bytes] | None:
        """The lower, the better; None where it cannot be had."""
        address = endpoint.address
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
        abroad = bool(own.zone.name) and (reply.zone or endpoint.zone) != own.zone.name
        return abroad, reply.verifiers, reply.host != host_id(), reply.open_sequences, lot
