"""Fairness between tenants: among those that wait, whoever was served least goes first.

A virtual token counter for each tenant, as in Sheng et al., "Fairness in Serving Large Language
Models" (OSDI 2024): it counts what the tenant was served, and one that comes back after a pause is
lifted to the least of those that are there, so that nobody saves up for a flood.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from verifier_service.generation import Generation

# An output token takes a row of a step of its own; prompt tokens share one.
_PROMPT_WEIGHT, _OUTPUT_WEIGHT = 1.0, 2.0


def service(prompt: float, output: float) -> float:
    """What it takes to serve so many tokens, in weighted tokens."""
    return _PROMPT_WEIGHT * prompt + _OUTPUT_WEIGHT * output


class Accounts:
    """What each tenant was served. One owner; not thread-safe."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._live: dict[str, int] = {}

    def __len__(self) -> int:
        """Tenants that are remembered."""
        return len(self._served)

    def served(self, tenant: str) -> float:
        """Weighted tokens; only differences mean something."""
        return self._served.get(tenant, 0.0)

    def join(self, tenant: str) -> None:
        """Another request of a tenant waits."""
        if tenant not in self._live:
            self._served[tenant] = max(self.served(tenant), self._floor())
        self._live[tenant] = self._live.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """A request of a tenant has ended."""
        self._live[tenant] -= 1
        if self._live[tenant]:
            return
        del self._live[tenant]
        # Who had no more than the others would be lifted anyway; with nobody there, nobody has a
        # claim. So no more is remembered than matters.
        floor = self._floor()
        self._served = {
            name: served
            for name, served in self._served.items()
            if name in self._live or (self._live and served > floor)
        }

    def charge(self, tenant: str, tokens: float) -> None:
        """A tenant with a live request was served so many weighted tokens."""
        self._served[tenant] += tokens

    def _floor(self) -> float:
        return min((self._served[tenant] for tenant in self._live), default=0.0)


class FairQueue:
    """Those that wait: lowest priority number first, then the tenant that was served least, then
    first come. One owner; not thread-safe."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._lines: dict[int, dict[str, deque[Generation]]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Generation]:
        for tenants in self._lines.values():
            for line in tenants.values():
                yield from line

    def push(self, generation: Generation) -> None:
        """Waits behind those of its tenant; one that was taken before, elsewhere, behind those of
        them that have begun."""
        line = self._line(generation)
        place = len(line)
        if generation.request.resumed:
            new = (i for i, g in enumerate(line) if not (g.started or g.request.resumed))
            place = next(new, place)
        line.insert(place, generation)
        self._length += 1

    def push_back(self, generation: Generation) -> None:
        """One that had begun waits again, before those of its tenant."""
        self._line(generation).appendleft(generation)
        self._length += 1

    def head(self) -> Generation:
        """Who is next. Raises ValueError where nobody waits."""
        tenants = self._lines[min(self._lines)]
        tenant = min(tenants, key=lambda t: (self._accounts.served(t), tenants[t][0].number))
        return tenants[tenant][0]

    def remove(self, generation: Generation) -> None:
        request = generation.request
        tenants = self._lines[request.priority]
        tenants[request.tenant].remove(generation)
        self._length -= 1
        if not tenants[request.tenant]:
            del tenants[request.tenant]
        if not tenants:
            del self._lines[request.priority]

    def _line(self, generation: Generation) -> deque[Generation]:
        request = generation.request
        return self._lines.setdefault(request.priority, {}).setdefault(request.tenant, deque())
