"""Hits the verifier that serves a stream, once the stream has got so far."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from slipstream.bench.load.doors import clock
from slipstream.bench.load.reading import Reading
from slipstream.bench.reliability.fleet import Member
from slipstream.bench.reliability.pair import Pair
from slipstream.bench.reliability.settings import Hit
from slipstream.bench.services import Verifier
from slipstream.core.errors import InternalError

_POLL_SECONDS = 0.02
SIGNALS = {Hit.kill: signal.SIGKILL, Hit.stop: signal.SIGSTOP, Hit.term: signal.SIGTERM}


@dataclass(frozen=True, slots=True)
class Struck:
    """Who was hit, when (on `clock`), and how many tokens the client had then."""

    member: Member
    moment: float
    tokens: int


@dataclass(slots=True)
class Blow:
    """To come, or done.

    Attributes:
        after: tokens that the client has before it.
        serving: who serves the stream, once that is known.
    """

    hit: Hit
    after: int
    pair: Pair
    serving: Member | None = None
    struck: Struck | None = None

    async def find(self, both: Sequence[Verifier]) -> None:
        """Asks both, in the order of the pair, until one says that it runs a request. Raises as
        `Verifier.status`."""
        while self.serving is None:
            for member, each in zip((self.pair.one, self.pair.other), both, strict=True):
                if (await each.status()).requests_running:
                    self.serving = member
                    return
            await asyncio.sleep(_POLL_SECONDS)

    def look(self, reading: Reading) -> bool:
        """Called after every chunk: strikes when it is time. False: the client stays."""
        tokens = len(reading.token_ids)
        if self.struck is None and self.serving is not None and tokens >= self.after:
            self.serving.hit(SIGNALS[self.hit])
            self.struck = Struck(self.serving, clock(), tokens)
        return False


def struck_in(blow: Blow, reading: Reading) -> Struck:
    """Raises InternalError where the stream ended before it."""
    if blow.struck is None:
        raise InternalError(
            f"the stream ended after {len(reading.token_ids)} tokens, before its verifier was hit:"
            f" {reading.failure or 'its answer was complete'}"
        )
    return blow.struck
