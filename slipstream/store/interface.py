"""What gateways keep outside themselves: documents, logs and indexes, each with a time to live.

Documents change by compare-and-set. Logs only grow, and only by whoever took them over last: each
writer has a fence, and one with a lower fence than the last is refused. Keys are paths of printable
ASCII, as `session/alice/s1`. Fences are from 0 up to below 2**63, positions below 2**32.

Every call may raise StoreUnavailable. A change has then been made once, or not at all, or (when the
caller was cut off by a deadline) will yet be: who needs to know reads what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


class VersionConflict(Exception):
    """A document is not at the version that a writer expected; `current` is 0 where it is gone."""

    def __init__(self, current: int) -> None:
        super().__init__(f"the document is at version {current}")
        self.current = current


class Fenced(Exception):
    """Somebody else has taken the log over, with this fence."""

    def __init__(self, fence: int) -> None:
        super().__init__(f"the log is written with fence {fence}")
        self.fence = fence


class IndexFull(Exception):
    """An index has as many members as the caller grants it."""

    def __init__(self, members: int) -> None:
        super().__init__(f"the index has {members} members")
        self.members = members


@dataclass(frozen=True, slots=True)
class Document:
    """A value and its version: 1 when it was made, one more with every change."""

    value: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Append:
    """Entries for one log.

    Attributes:
        log: its key.
        fence: the writer's.
        start: the position that the entry begins at; the log must have come exactly so far.
        count: positions that the entry covers. 0 without data is a heartbeat.
        data: opaque.
        ended: whether this is the log's last entry.
        ttl: seconds from now for which the log is kept.
    """

    log: str
    fence: int
    start: int
    count: int
    data: bytes
    ended: bool
    ttl: float


# Written; refused, since another writer took over; not written, since the log has not come to
# `start` or is beyond it; there is no such log (any more).
AppendResult = Literal["ok", "fenced", "gap", "missing"]


@dataclass(frozen=True, slots=True)
class LogView:
    """A log as it was read.

    Attributes:
        fence: of the last writer.
        length: positions so far.
        age: seconds since the last append or heartbeat, by the store's clock.
        ended: whether it has its last entry.
        entries: (start, data) in order, from the position that was asked for: the first one may
            begin before it.
    """

    fence: int
    length: int
    age: float
    ended: bool
    entries: tuple[tuple[int, bytes], ...]


class Store(Protocol):
    """One for the process; safe for many tasks of one event loop, and several processes."""

    async def get(self, key: str) -> Document | None:
        """The document, or None where there is none or its time is over."""

    async def put(self, key: str, value: bytes, *, ttl: float, expect: int | None = None) -> int:
        """Writes a document and returns its new version.

        Args:
            ttl: seconds from now for which it is kept.
            expect: the version that it must have; 0: it must not exist; None: whatever is there.

        Raises:
            VersionConflict: it has another one.
        """

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Whether there was a document. Raises VersionConflict, as `put` does."""

    async def log_open(self, log: str, fence: int, *, ttl: float) -> LogView:
        """Takes a log over, which need not exist, and reads all of it.

        Raises:
            Fenced: this fence or a higher one is there already.
        """

    async def log_append(self, items: Sequence[Append]) -> list[AppendResult]:
        """Adds to many logs in one round trip; a result for each item, in order."""

    async def log_read(self, log: str, start: int = 0) -> LogView | None:
        """A log from a position on, or None where there is none."""

    async def log_delete(self, log: str) -> None:
        """Also where there is none."""

    async def index_add(
        self, index: str, member: str, *, ttl: float, most: int | None = None
    ) -> None:
        """Adds a member, or renews it, for so many seconds. The work grows with the logarithm of
        the index's members at most.

        Args:
            most: members, expired ones left out, that there may be with this one; who adds at the
                same time does not make it more. With it, a member that is there already stays,
                however many there are, and for no shorter than it would have. None: any number.

        Raises:
            IndexFull: there are `most` others, or more; nothing was changed.
        """

    async def index_remove(self, index: str, member: str) -> None:
        """Also where it is not there."""

    async def index_list(self, index: str, after: str = "", limit: int = 100) -> list[str]:
        """Members in the order of their text, from behind `after` on, expired ones left out."""

    async def ping(self) -> None:
        """Reads and writes, so that a replica that is read-only, or full, fails."""

    async def close(self) -> None:
        """Ends connections. No call may follow."""
