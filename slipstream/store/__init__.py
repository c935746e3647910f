"""The session store: what gateways keep for each other, and for after a restart."""

from slipstream.store.interface import (
    Append,
    AppendResult,
    Document,
    Fenced,
    LogView,
    Store,
    VersionConflict,
)
from slipstream.store.memory import MemoryStore

__all__ = [
    "Append",
    "AppendResult",
    "Document",
    "Fenced",
    "LogView",
    "MemoryStore",
    "Store",
    "VersionConflict",
]
