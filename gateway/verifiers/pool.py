"""All verifiers that the gateway knows: which there are, and which one serves next."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from gateway.verifiers.choice import choose, key_of_most
from gateway.verifiers.link import VerifierLink
from gateway.verifiers.served import Limits, ServedModel, VerifierState
from slipstream.core.errors import Unavailable
from slipstream.discovery.endpoints import Discovery, Endpoints
from slipstream.discovery.slices import Endpoint
from slipstream.discovery.zone import Zone

# Between two looks at DNS; and while nobody serves. A Service of Kubernetes tells by itself.
_RESOLVE_SECONDS = 5.0
_RESOLVE_SOON_SECONDS = 1.0
# For all of them: probes allow a second as a rule, which one verifier that hangs must not use up.
_READY_SECONDS = 0.5
STATES = ("serving", "draining", "lost", "other model")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Readiness:
    """What `/ready` says. `missing` is empty when requests can be served: one verifier is enough.

    The drafter's fields are of a verifier that serves, best of one that has a drafter.

    Attributes:
        discovery: how the Services of Kubernetes are followed, where any is named.
    """

    missing: tuple[str, ...]
    drafter_connected: bool | None
    drafter_detail: str
    verifiers: tuple[VerifierState, ...] = ()
    discovery: tuple[Discovery, ...] = ()


class VerifierPool:
    """Owns the links. `start` begins to look for verifiers, `close` ends all of them.

    Args:
        zone: whose verifiers are preferred; without a name: none.

    Attributes:
        key: of the model that new requests get, as `key_of_most` has it; the last one where nobody
            serves, and empty where nobody ever did.
    """

    def __init__(
        self, endpoints: Endpoints, limits: Limits | None = None, *, zone: Zone | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.key = ""
        self._endpoints = endpoints
        self._zone = zone or Zone()
        self._links: dict[str, VerifierLink] = {}
        # Of keys, in the order in which they were first seen.
        self._seen: dict[str, ServedModel] = {}
        self._change = asyncio.Event()
        self._finder: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._zone.start()
        self._finder = asyncio.create_task(self._find(), name="verifiers-find")

    async def close(self) -> None:
        if self._finder is not None:
            self._finder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._finder
        await asyncio.gather(
            self._zone.aclose(),
            self._endpoints.close(),
            *(link.close() for link in self._links.values()),
        )

    @property
    def discovery(self) -> tuple[Discovery, ...]:
        """How the Services of Kubernetes are followed."""
        return self._endpoints.describe()

    @property
    def calls(self) -> int:
        """Generations in progress."""
        return sum(link.calls for link in self._links.values())

    @property
    def known_model(self) -> ServedModel | None:
        """What is served, or was last."""
        return self._seen.get(self.key)

    def model(self, key: str = "") -> ServedModel:
        """What is served now, with the shortest window of those who serve it.

        Args:
            key: only that model; empty: what new requests get.

        Raises:
            Unavailable: no verifier serves it.
        """
        models = [link.model for link in self._serving(key or self.key) if link.model]
        if not models:
            raise self.nobody(key)
        return replace(models[0], context_length=min(model.context_length for model in models))

    def nobody(self, key: str = "") -> Unavailable:
        """The error where no verifier serves the model of `key`."""
        other = key and key != self.key and self.key
        what = f"the model that began this ({key})" if other else "now"
        told = f"no verifier serves {what}; try again soon"
        return Unavailable(told, inner=f"looked for at {self._endpoints}")

    def choose(
        self, key: str, *, holder: str = "", avoid: Collection[VerifierLink] = ()
    ) -> VerifierLink | None:
        """The verifier for a call that begins now; None where there is none.

        Args:
            key: of the model.
            holder: `kv_address` of one to prefer.
            avoid: those that have just failed at it.
        """
        candidates = [link for link in self._serving(key) if link not in avoid]
        return choose(candidates, holder, self._zone.name)

    def serves(self, kv_address: str) -> bool:
        """Whether a verifier that has not stopped lends keys and values there."""
        return bool(kv_address) and any(
            link.model is not None and link.model.kv_address == kv_address and link.state != "lost"
            for link in self._links.values()
        )

    async def changed(self, seconds: float) -> bool:
        """Waits until some verifier is in another state; False where none was for so long."""
        try:
            async with asyncio.timeout(seconds):
                return await self._change.wait()
        except TimeoutError:
            return False

    def states(self) -> Mapping[str, int]:
        """How many verifiers are in each state."""
        found = Counter(dict.fromkeys(STATES, 0))
        key = self.key
        found.update(link.describe(key).state for link in self._links.values())
        return found

    async def readiness(self) -> Readiness:
        """Asks all verifiers now; one that answers late is taken as it was last known."""
        await asyncio.gather(*(link.beat(_READY_SECONDS) for link in self._links.values()))
        key = self.key
        found = [link.describe(key) for link in self._links.values()]
        serving = [link.describe(key) for link in self._serving(key)]
        missing = [f"verifier at {one.address}: {one.detail}" for one in found]
        discovery = self.discovery
        if not found:
            missing = [f"no verifier is known at {self._endpoints}"]
            missing += [f"{one.entry}: {one.detail}" for one in discovery if one.detail]
        serving.sort(key=lambda one: not one.drafter_connected)
        return Readiness(
            () if serving else tuple(missing),
            serving[0].drafter_connected if serving else None,
            serving[0].drafter_detail if serving else "unknown",
            tuple(found),
            discovery,
        )

    def _serving(self, key: str) -> list[VerifierLink]:
        """Those that take new calls; where there are none, those that are to go and were not told
        to stop yet: in a rollout the next one may not have answered."""
        able = [
            link
            for link in self._links.values()
            if link.able and link.model is not None and key in ("", link.model.key)
        ]
        return [link for link in able if link.state == "serving"] or able

    def _note(self) -> None:
        """Some link's state or model is another one."""
        for link in self._links.values():
            model = link.model
            if model is None:
                continue
            if model.key not in self._seen and self._seen:
                log.warning("the verifier at %s has another model: %s", link.address, model.key)
            self._seen[model.key] = model
        self.key = key_of_most(self._serving(""), self.key, tuple(self._seen)) or self.key
        self._change.set()
        self._change = asyncio.Event()

    async def _find(self) -> None:
        while True:
            seen = self._endpoints.changes
            await self._update(await self._endpoints.resolve())
            if self._endpoints.static:
                return
            soon = not self._serving("")
            seconds = _RESOLVE_SOON_SECONDS if soon else _RESOLVE_SECONDS
            await self._endpoints.changed(seen, seconds)

    async def _update(self, endpoints: Collection[Endpoint]) -> None:
        there = {endpoint.address: endpoint for endpoint in endpoints}
        for address in there:
            if address not in self._links:
                link = VerifierLink(address, self.limits, self._note)
                self._links[address] = link
                link.start()
        for address, link in list(self._links.items()):
            if link.listed != there.get(address):
                before, link.listed = _standing(link.listed), there.get(address)
                if (now := _standing(link.listed)) != before:
                    log.info("verifier at %s is %s", address, now)
                self._note()
            # What it runs it may finish; one that is gone for good takes its link with it.
            if link.listed is None and not link.calls:
                del self._links[address]
                await link.close()


def _standing(listed: Endpoint | None) -> str:
    if listed is None:
        return "not listed any more"
    return "listed as draining" if listed.draining else "listed"
