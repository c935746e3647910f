"""A store in memory, to test against: it forgets everything with the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from slipstream.store.interface import (
    Append,
    AppendResult,
    Document,
    Fenced,
    IndexFull,
    LogView,
    VersionConflict,
)


@dataclass(slots=True)
class _Log:
    fence: int
    expires: float
    beat: float
    length: int = 0
    ended: bool = False
    entries: list[tuple[int, bytes]] = field(default_factory=list)


class MemoryStore:
    """Implements `Store`.

    Args:
        clock: seconds; a test may move it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._documents: dict[str, tuple[Document, float]] = {}
        self._logs: dict[str, _Log] = {}
        self._indexes: dict[str, dict[str, float]] = {}

    async def get(self, key: str) -> Document | None:
        return self._get(key)

    def _get(self, key: str) -> Document | None:
        document, expires = self._documents.get(key, (None, 0.0))
        return document if expires > self._clock() else None

    def _expect(self, key: str, expect: int | None) -> int:
        found = self._get(key)
        current = 0 if found is None else found.version
        if expect is not None and current != expect:
            raise VersionConflict(current)
        return current

    async def put(self, key: str, value: bytes, *, ttl: float, expect: int | None = None) -> int:
        version = self._expect(key, expect) + 1
        self._documents[key] = Document(value, version), self._clock() + ttl
        return version

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        current = self._expect(key, expect)
        self._documents.pop(key, None)
        return current > 0

    def _log(self, log: str) -> _Log | None:
        found = self._logs.get(log)
        return found if found is not None and found.expires > self._clock() else None

    async def log_open(self, log: str, fence: int, *, ttl: float) -> LogView:
        now = self._clock()
        found = self._log(log)
        if found is None:
            found = self._logs[log] = _Log(fence, now + ttl, now)
        elif found.fence >= fence:
            raise Fenced(found.fence)
        found.fence, found.expires, found.beat = fence, now + ttl, now
        return self._view(found, 0)

    async def log_append(self, items: Sequence[Append]) -> list[AppendResult]:
        return [self._append(item) for item in items]

    def _append(self, item: Append) -> AppendResult:
        found = self._log(item.log)
        if found is None:
            return "missing"
        if item.fence != found.fence:
            return "fenced"
        if item.start != found.length or found.ended:
            return "gap"
        now = self._clock()
        found.beat, found.expires = now, now + item.ttl
        if item.data:
            found.entries.append((item.start, item.data))
        found.length += item.count
        found.ended = item.ended
        return "ok"

    async def log_read(self, log: str, start: int = 0) -> LogView | None:
        found = self._log(log)
        return None if found is None else self._view(found, start)

    def _view(self, log: _Log, start: int) -> LogView:
        ends = [entry[0] for entry in log.entries[1:]]
        ends += [log.length] if log.entries else []
        # An entry of no positions at `start`, as the last word may be, is wanted, too.
        wanted = [
            entry
            for entry, end in zip(log.entries, ends, strict=True)
            if end > start or entry[0] >= start
        ]
        age = self._clock() - log.beat
        return LogView(log.fence, log.length, age, log.ended, tuple(wanted))

    async def log_delete(self, log: str) -> None:
        self._logs.pop(log, None)

    async def index_add(
        self, index: str, member: str, *, ttl: float, most: int | None = None
    ) -> None:
        members, expires = self._living(index), self._clock() + ttl
        if most is not None:
            if member not in members and len(members) >= most:
                raise IndexFull(len(members))
            expires = max(expires, members.get(member, 0.0))
        members[member] = expires

    async def index_remove(self, index: str, member: str) -> None:
        self._indexes.get(index, {}).pop(member, None)

    async def index_list(self, index: str, after: str = "", limit: int = 100) -> list[str]:
        return [member for member in sorted(self._living(index)) if member > after][:limit]

    def _living(self, index: str) -> dict[str, float]:
        now = self._clock()
        members = {k: v for k, v in self._indexes.get(index, {}).items() if v > now}
        self._indexes[index] = members
        return members

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass
