"""When requests arrive in an open loop: a Poisson process, whether or not answers keep up.

Users who wait for an answer before they ask again (a closed loop) slow down with the server and so
hide its queue; the public does not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from slipstream.core.errors import ConfigurationError


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Arrival times in seconds since the start, without end: gaps are exponential of mean 1/rate.

    Args:
        rate: requests per second.
        seed: the same one gives the same times.

    Raises:
        ConfigurationError: the rate is not above 0.
    """
    if not rate > 0:
        raise ConfigurationError(f"a rate must be above 0 requests per second, got {rate:g}")
    draw, now = random.Random(seed), 0.0
    while True:
        now += draw.expovariate(rate)
        yield now


def until(seconds: float, times: Iterator[float]) -> list[float]:
    """Those times that come before `seconds`."""
    found = []
    for time in times:
        if time >= seconds:
            break
        found.append(time)
    return found
