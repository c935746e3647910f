"""The session store in Redis: one server, the master that Sentinels name, or a Cluster."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b, sha1

from slipstream.core.errors import StoreUnavailable
from slipstream.store import redis_scripts as scripts
from slipstream.store.interface import (
    Append,
    AppendResult,
    Document,
    Fenced,
    IndexFull,
    LogView,
    VersionConflict,
)
from slipstream.store.redis_cluster import ClusterServers
from slipstream.store.redis_scripts import PREFIX, Request, Script, request
from slipstream.store.redis_servers import OneServer, SentinelServers, Servers
from slipstream.store.redis_trouble import TROUBLE, explain, worth_another_try
from slipstream.store.redis_url import Form, RedisUrl

_KINDS: Mapping[Form, Callable[[RedisUrl, float], Servers]] = {
    "server": OneServer,
    "sentinel": SentinelServers,
    "cluster": ClusterServers,
}
_APPEND_RESULTS: dict[bytes, AppendResult] = {
    b"ok": "ok",
    b"fenced": "fenced",
    b"gap": "gap",
    b"missing": "missing",
}
# Of a log's record: where it begins, and its checksum.
_START, _CHECK_BYTES = struct.Struct(">I"), 8
_HEAD = 61
# Members of an index that one script looks at.
_PAGE = 256


class _Spoilt(Exception):
    """What Redis keeps is not what was written; or we were given it wrongly."""


class RedisStore:
    """Implements `Store`. Time is Redis' clock.

    What was asked is done once or not at all; after StoreUnavailable nobody knows which. Bytes that
    are damaged on the way, or kept wrongly, are found and asked for a second time where that is
    safe; they never come back as data.

    Args:
        timeout: seconds that a call may take in all.
    """

    def __init__(self, url: RedisUrl, *, timeout: float = 2.0) -> None:
        self._servers: Servers = _KINDS[url.form](url, timeout)
        self._timeout = timeout

    async def get(self, key: str) -> Document | None:
        for last in (False, True):
            parts = await self._ask(scripts.GET, [_document(key)], repeatable=True)
            try:
                return _opened(_document(key), parts[0]) if parts else None
            except _Spoilt as failure:
                _give_up(failure, last)
        raise AssertionError

    async def put(self, key: str, value: bytes, *, ttl: float, expect: int | None = None) -> int:
        return await self._change(scripts.PUT, key, expect, _milliseconds(ttl), value)

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        return await self._change(scripts.DELETE, key, expect) > 0

    async def _change(
        self, script: Script, key: str, expect: int | None, *args: int | bytes
    ) -> int:
        expected = "" if expect is None else expect
        result, version = await self._ask(script, [_document(key)], expected, *args)
        if result == b"conflict":
            raise VersionConflict(int(version))
        return int(version)

    async def log_open(self, log: str, fence: int, *, ttl: float) -> LogView:
        key = _log(log)
        result, head, *records = await self._ask(
            scripts.LOG_OPEN, [key], _fence(fence), _milliseconds(ttl)
        )
        if result == b"fenced":
            raise Fenced(int(head))
        try:
            return _view(key, head, 0.0, records)
        except _Spoilt:
            # The log is ours now; only what was read is in doubt.
            view = await self.log_read(log)
        if view is None or view.fence != fence:
            raise StoreUnavailable("a log was lost while it was taken over")
        return view

    async def log_append(self, items: Sequence[Append]) -> list[AppendResult]:
        """In one round trip; in a Cluster one for each of its nodes, at the same time."""
        answers = await self._execute([_append(item) for item in items], repeatable=False)
        return [_APPEND_RESULTS[answer[0]] for answer in answers]

    async def log_read(self, log: str, start: int = 0) -> LogView | None:
        key = _log(log)
        for last in (False, True):
            parts = await self._ask(scripts.LOG_READ, [key], start, repeatable=True)
            if not parts:
                return None
            head, now, *records = parts
            try:
                return _view(key, head, int(now), records)
            except _Spoilt as failure:
                _give_up(failure, last)
        raise AssertionError

    async def log_delete(self, log: str) -> None:
        await self._ask(scripts.REMOVE, [_log(log)], repeatable=True)

    async def index_add(
        self, index: str, member: str, *, ttl: float, most: int | None = None
    ) -> None:
        args = member, _milliseconds(ttl), "" if most is None else most
        full = await self._ask(scripts.INDEX_ADD, _index(index), *args, repeatable=True)
        if full:
            raise IndexFull(int(full[0]))

    async def index_remove(self, index: str, member: str) -> None:
        await self._ask(scripts.INDEX_REMOVE, _index(index), member, repeatable=True)

    async def index_list(self, index: str, after: str = "", limit: int = 100) -> list[str]:
        members: list[str] = []
        more = True
        while more and len(members) < limit:
            wanted = limit - len(members)
            flag, seen, *found = await self._ask(
                scripts.INDEX_LIST, _index(index), after, wanted, _PAGE, repeatable=True
            )
            members += [member.decode() for member in found]
            more, after = flag == b"1", seen.decode()
        return members

    async def ping(self) -> None:
        """Of a Cluster, every node that has slots."""
        try:
            async with asyncio.timeout(self._timeout):
                keys = await self._servers.ping_keys()
        except TimeoutError as failure:
            raise self._late() from failure
        except TROUBLE as failure:
            raise StoreUnavailable(explain(failure)) from failure
        pings = [request(scripts.PING, [key], "ping") for key in keys]
        await self._execute(pings, repeatable=True)

    async def close(self) -> None:
        await self._servers.close()

    async def _ask(
        self,
        script: Script,
        keys: Sequence[str],
        *args: str | bytes | int,
        repeatable: bool = False,
    ) -> list[bytes]:
        (answer,) = await self._execute([request(script, keys, *args)], repeatable=repeatable)
        return answer

    async def _execute(self, requests: Sequence[Request], *, repeatable: bool) -> list[list[bytes]]:
        """An answer for each request.

        Args:
            repeatable: whether they may be sent a second time though they may have been done.
        """
        if not requests:
            return []
        try:
            async with asyncio.timeout(self._timeout):
                outcomes = await self._servers.run(requests)
                again = [
                    i
                    for i, found in enumerate(outcomes)
                    if isinstance(found, Exception)
                    and worth_another_try(found, repeatable=repeatable)
                ]
                if again:
                    repeated = await self._servers.run([requests[i] for i in again])
                    for i, found in zip(again, repeated, strict=True):
                        outcomes[i] = found
        except TimeoutError as failure:
            raise self._late() from failure
        answers: list[list[bytes]] = []
        for found in outcomes:
            if isinstance(found, Exception):
                raise StoreUnavailable(explain(found)) from found
            answers.append(found)
        return answers

    def _late(self) -> StoreUnavailable:
        return StoreUnavailable(f"Redis does not answer within {self._timeout:g} s")


def _document(key: str) -> str:
    return f"{PREFIX}doc:{key}"


def _log(log: str) -> str:
    return f"{PREFIX}log:{log}"


def _index(index: str) -> list[str]:
    """Members by text and by expiry. The braces keep both in one slot; there are no others."""
    name = index.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return [f"{PREFIX}index:{{{name}}}", f"{PREFIX}expiry:{{{name}}}"]


def _milliseconds(ttl: float) -> int:
    return max(1, round(ttl * 1000))


def _fence(fence: int) -> str:
    """Redis' scripts have no integers of 64 bits, but compare texts."""
    return f"{fence:020}"


def _give_up(failure: _Spoilt, last: bool) -> None:
    if last:
        raise StoreUnavailable(f"what Redis keeps is damaged: {failure}") from failure


def _opened(key: str, stored: bytes) -> Document:
    version, check, value = stored[:16], stored[16:32], stored[32:]
    found = sha1(key.encode() + version + value, usedforsecurity=False).hexdigest()
    if found[:16].encode() != check:
        raise _Spoilt(f"the document {key}")
    return Document(value, int(version))


def _check(key: str, start: bytes, data: bytes) -> bytes:
    content = b"\0".join((key.encode(), start, data))
    return blake2b(content, digest_size=_CHECK_BYTES).digest()


def _append(item: Append) -> Request:
    key = _log(item.log)
    record = b""
    if item.data:
        start = _START.pack(item.start)
        record = start + _check(key, start, item.data) + item.data
    ended, time = int(item.ended), _milliseconds(item.ttl)
    return request(
        scripts.LOG_APPEND, [key], _fence(item.fence), item.start, item.count, ended, time, record
    )


def _view(key: str, head: bytes, now: float, records: Sequence[bytes]) -> LogView:
    text, check = head[:53], head[53:]
    found = sha1(key.encode() + text, usedforsecurity=False).hexdigest()
    if len(head) != _HEAD or found[:8].encode() != check:
        raise _Spoilt(f"the head of the log {key}")
    # Another master's clock may be behind.
    age = max(0.0, (now - int(text[36:52])) / 1000)
    entries = tuple(_entry(key, record) for record in records)
    return LogView(int(text[:20]), int(text[20:36]), age, text[52:] == b"1", entries)


def _entry(key: str, record: bytes) -> tuple[int, bytes]:
    start, data = record[: _START.size], record[_START.size + _CHECK_BYTES :]
    if _check(key, start, data) != record[_START.size : _START.size + _CHECK_BYTES]:
        raise _Spoilt(f"an entry of the log {key}")
    return _START.unpack(start)[0], data
