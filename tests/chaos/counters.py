"""What gateways counted, over all their lives: a counter begins at 0 again with its process."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

_EVERY = 2.0
_WORDS = ("failover", "resum", "drain", "store", "corrupt", "journal", "session")
# Labels that every sample has.
_COMMON = ("component", "model_name")


@dataclass(slots=True)
class Counters:
    """Counters about failures, by name and labels; what counted after the last look is missing."""

    totals: Counter[str] = field(default_factory=Counter)
    _last: dict[tuple[str, str], float] = field(default_factory=dict)

    def take(self, gateway: str, samples: Mapping[str, float]) -> None:
        """Adds what a gateway counted since it was looked at last."""
        for name, value in samples.items():
            last = self._last.get((gateway, name), 0.0)
            self.totals[name] += round(value - last if value >= last else value)
            self._last[gateway, name] = value


def samples(text: str) -> dict[str, float]:
    """Of Prometheus' text, the counters about failures."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            wanted = any(word in sample.name for word in _WORDS)
            if wanted and sample.name.endswith("_total"):
                own = {k: v for k, v in sorted(sample.labels.items()) if k not in _COMMON}
                labels = ",".join(own.values())
                found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


@asynccontextmanager
async def counting(addresses: Sequence[str]) -> AsyncIterator[Counters]:
    """Looks at these gateways every two seconds, and once more in the end."""
    counters = Counters()

    async def look() -> None:
        async with httpx.AsyncClient(timeout=2.0, trust_env=False, verify=False) as web:
            for address in addresses:
                with contextlib.suppress(httpx.HTTPError, ValueError):
                    answer = (await web.get(f"http://{address}/metrics")).raise_for_status()
                    counters.take(address, samples(answer.text))

    async def keep_looking() -> None:
        while True:
            await look()
            await asyncio.sleep(_EVERY)

    looking = asyncio.create_task(keep_looking())
    try:
        yield counters
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
        await look()
