"""The session store: what gateways keep for each other, and for after a restart."""

from slipstream.store.guard import GuardedStore
from slipstream.store.interface import (
    Append,
    AppendResult,
    Document,
    Fenced,
    IndexFull,
    LogView,
    Store,
    VersionConflict,
)
from slipstream.store.memory import MemoryStore
from slipstream.store.opening import default_url, describe, open_store

__all__ = [
    "Append",
    "AppendResult",
    "Document",
    "Fenced",
    "GuardedStore",
    "IndexFull",
    "LogView",
    "MemoryStore",
    "Store",
    "VersionConflict",
    "default_url",
    "describe",
    "open_store",
]
