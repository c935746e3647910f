"""On what terms a request is served: for whom, how urgently, until when, with whose caches."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass

from slipstream.core.errors import DeadlineExceeded, InvalidParameter

# What the wire carries: a signed integer of 32 bits.
MAX_PRIORITY = 2**31 - 1
MAX_DEADLINE_SECONDS = 24 * 3600.0
MAX_SALT_LENGTH = 256
TIMEOUT_HEADER = "X-Request-Timeout"
# As JSON writes them; Python would also read 1_0, inf, and the digits of every script.
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Terms:
    """What does not change the tokens, only when they come.

    Attributes:
        tenant: name of the API key; empty where none are asked for.
        priority: lower ones go first; 0 is usual (as in vLLM).
        deadline: on `time.monotonic()`'s clock; None for never.
        cache_salt: keys and values of prompts are shared among requests of one salt only.

    Raises:
        InvalidParameter: names the field that is out of its range.
    """

    tenant: str = ""
    priority: int = 0
    deadline: float | None = None
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if not -MAX_PRIORITY - 1 <= self.priority <= MAX_PRIORITY:
            raise InvalidParameter(
                f"priority must be an integer of 32 bits, got {self.priority}", param="priority"
            )
        if len(self.cache_salt) > MAX_SALT_LENGTH:
            raise InvalidParameter(
                f"cache_salt may have at most {MAX_SALT_LENGTH} characters,"
                f" got {len(self.cache_salt)}",
                param="cache_salt",
            )

    def remaining(self) -> float | None:
        """Seconds until the deadline.

        Raises:
            DeadlineExceeded: it has passed.
        """
        if self.deadline is None:
            return None
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the request's time is over", param="timeout")
        return left

    def salt(self, *, isolate: bool) -> str:
        """The verifier's `cache_salt`: with the tenant's name in it, where tenants are kept apart.

        A key's name has no slash in it, so no two pairs of tenant and salt give the same.
        """
        owner = self.tenant if isolate else ""
        return f"{owner}/{self.cache_salt}" if owner or self.cache_salt else ""


def deadline(arrived: float, *given: tuple[str, float | None]) -> float | None:
    """The earliest of the times that a request may take, on the clock of `arrived`.

    Args:
        arrived: `time.monotonic()` when the request came.
        given: name of a field and its seconds; None where it is not there.

    Raises:
        InvalidParameter: one is not above 0 and at most a day.
    """
    seconds = []
    for name, value in given:
        if value is None:
            continue
        if not 0 < value <= MAX_DEADLINE_SECONDS:
            raise InvalidParameter(
                f"{name} must be a number of seconds in (0, {MAX_DEADLINE_SECONDS:g}]", param=name
            )
        seconds.append(value)
    return arrived + min(seconds) if seconds else None


def seconds_of(header: str | None) -> float | None:
    """The number in an `X-Request-Timeout` header; NaN, which no range has, where it is none."""
    if header is None:
        return None
    return float(header) if _NUMBER.fullmatch(header) else math.nan
