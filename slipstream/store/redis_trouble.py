"""What is wrong with Redis, in words; and whether asking once more is worth it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from redis import exceptions

from slipstream.store.redis_scripts import Damaged

# All that a call to Redis may end with.
TROUBLE = (exceptions.RedisError, OSError, Damaged)
# What reading bytes that make no sense may end with.
NONSENSE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)

# By the word that a refusal of Redis begins with, or has in it where a script met it.
_WORDS: Mapping[str, str] = {
    "OOM": "Redis is full (its maxmemory is reached)",
    "READONLY": "Redis is a read-only replica",
    "LOADING": "Redis is still loading its data",
    "NOAUTH": "Redis wants a password",
    "WRONGPASS": "Redis refuses the user name or password",
    "NOPERM": "Redis does not permit its user what we do",
    "CLUSTERDOWN": "the Redis Cluster is down",
    "MASTERDOWN": "Redis has lost its master",
    "MOVED": "the Redis Cluster moves its slots",
    "ASK": "the Redis Cluster moves its slots",
    "TRYAGAIN": "the Redis Cluster moves its slots",
    "CROSSSLOT": "the server is a node of a Redis Cluster: use redis+cluster://",
    "MISCONF": "Redis cannot save to its disk and refuses writes",
    "NOREPLICAS": "Redis has too few replicas and refuses writes",
    "BUSY": "Redis is busy with a script",
    "DAMAGED": "requests are damaged on their way to Redis",
}

# redis-py takes the word away where it has a class for it. The more special ones come first.
_CLASSES: Mapping[type[Exception], str] = {
    exceptions.OutOfMemoryError: "OOM",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.AuthenticationError: "WRONGPASS",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.MovedError: "MOVED",
    exceptions.AskError: "ASK",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
}
_WORD = re.compile(rf"(?:^|[ -])({'|'.join(_WORDS)})\b")

# Refused by who is not, or no longer, in charge; nothing was done.
_ELSEWHERE = {"READONLY", "MOVED", "ASK", "TRYAGAIN"}


def word(failure: BaseException) -> str:
    """Redis' word for why it refused; empty where it did not, or said nothing that we know."""
    for kind, found in _CLASSES.items():
        if isinstance(failure, kind):
            return "NOAUTH" if "required" in str(failure) and found == "WRONGPASS" else found
    known = _WORD.search(str(failure)) if isinstance(failure, exceptions.ResponseError) else None
    return "" if known is None else known[1]


def explain(failure: BaseException) -> str:
    """For an operator. No password is in it."""
    if isinstance(failure, Damaged):
        return f"answers of Redis are damaged on their way: {failure}"
    if found := word(failure):
        return f"{_WORDS[found]} ({failure})"
    if isinstance(failure, exceptions.TimeoutError):
        return f"Redis does not answer in time: {failure}"
    if isinstance(failure, exceptions.ResponseError):
        return f"Redis refuses: {failure}"
    return f"Redis cannot be reached: {str(failure) or type(failure).__name__}"


def has_moved(failure: Exception) -> bool:
    """Whether another server may be in charge by now."""
    found = word(failure)
    return found in _ELSEWHERE | {"CLUSTERDOWN", "MASTERDOWN", "LOADING"} or (
        not found and not isinstance(failure, exceptions.ResponseError | Damaged)
    )


def worth_another_try(failure: Exception, *, repeatable: bool) -> bool:
    """Whether a request may be sent a second time, at once.

    Args:
        repeatable: whether it may be done twice: after most failures it may have been done.
    """
    found = word(failure)
    if found:
        return found in _ELSEWHERE | {"DAMAGED"}
    if isinstance(failure, exceptions.ResponseError):
        # Not understood, as when a byte of the command's name is damaged; scripts are done.
        return "script" not in str(failure)
    return repeatable and not isinstance(failure, exceptions.TimeoutError)
