"""Which of several verifiers gets the next generation."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from gateway.verifiers.link import VerifierLink

# Loads closer than this are one: they are estimates, and gateways must not all choose the same.
_EQUAL = 0.5
# One that is nearer, or has keys and values of the prompt, is worth some requests more.
_MORE_REQUESTS = 4.0
_MORE_TIMES = 1.5


def choose(candidates: Sequence[VerifierLink], holder: str, zone: str) -> VerifierLink | None:
    """The holder, else one of the zone, else any; each unless it is clearly more loaded than the
    least loaded of all. Among those that are left, the least loaded; at random among equals.

    Args:
        holder: `kv_address` of the one that may have the prompt's keys and values; or empty.
        zone: that is preferred; empty: none.
    """
    if not candidates:
        return None
    load = {link: link.load for link in candidates}
    bound = min(load.values()) * _MORE_TIMES + _MORE_REQUESTS
    fit = [link for link in candidates if load[link] <= bound]
    for link in fit:
        if holder and link.model is not None and link.model.kv_address == holder:
            return link
    near = [link for link in fit if zone and link.zone == zone]
    chosen = near or candidates
    least = min(load[link] for link in chosen)
    return random.choice([link for link in chosen if load[link] < least + _EQUAL])


def key_of_most(serving: Iterable[VerifierLink], current: str, seen: Sequence[str]) -> str:
    """The key that new requests get: that of most verifiers.

    So an upgrade to another model, one verifier after the other, turns behind its middle, and one
    verifier that was started with a wrong option gets no request. Empty where nobody serves.

    Args:
        current: kept where another has as many.
        seen: keys in the order in which they were first seen; of others the newest is preferred.
    """
    counts = Counter(link.model.key for link in serving if link.model is not None)
    return max(counts, key=lambda key: (counts[key], key == current, seen.index(key)), default="")
