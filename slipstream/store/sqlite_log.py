"""Logs in the session store's file. Each function runs inside a transaction of its caller."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from slipstream.store.interface import Append, AppendResult, Fenced, LogView


@dataclass(frozen=True, slots=True)
class _Head:
    id: int
    fence: int
    length: int
    ended: bool
    beat: float


def _head(db: sqlite3.Connection, key: str, now: float) -> _Head | None:
    row = db.execute(
        "SELECT id, fence, length, ended, beat FROM log WHERE key = ? AND expires > ?", (key, now)
    ).fetchone()
    return None if row is None else _Head(row[0], row[1], row[2], bool(row[3]), row[4])


def take(db: sqlite3.Connection, key: str, fence: int, ttl: float, now: float) -> LogView:
    """`Store.log_open`."""
    head = _head(db, key, now)
    if head is not None and head.fence >= fence:
        raise Fenced(head.fence)
    if head is None:
        # An expired one may still be there.
        delete(db, key)
        db.execute(
            "INSERT INTO log (key, fence, length, ended, beat, expires) VALUES (?, ?, 0, 0, ?, ?)",
            (key, fence, now, now + ttl),
        )
        return LogView(fence, 0, 0.0, False, ())
    db.execute(
        "UPDATE log SET fence = ?, beat = ?, expires = ? WHERE id = ?",
        (fence, now, now + ttl, head.id),
    )
    return LogView(fence, head.length, 0.0, head.ended, _entries(db, head, 0))


def append(db: sqlite3.Connection, item: Append, now: float) -> AppendResult:
    """One item of `Store.log_append`."""
    head = _head(db, item.log, now)
    if head is None:
        return "missing"
    if head.fence != item.fence:
        return "fenced"
    if head.length != item.start or head.ended:
        return "gap"
    db.execute(
        "UPDATE log SET length = ?, ended = ?, beat = ?, expires = ? WHERE id = ?",
        (head.length + item.count, item.ended, now, now + item.ttl, head.id),
    )
    if item.data:
        db.execute(
            "INSERT INTO entry (log, start, n, data) VALUES (?1, ?2,"
            " (SELECT count(*) FROM entry WHERE log = ?1 AND start = ?2), ?3)",
            (head.id, item.start, item.data),
        )
    return "ok"


def read(db: sqlite3.Connection, key: str, start: int, now: float) -> LogView | None:
    """`Store.log_read`."""
    head = _head(db, key, now)
    if head is None:
        return None
    age = max(0.0, now - head.beat)
    return LogView(head.fence, head.length, age, head.ended, _entries(db, head, start))


def _entries(db: sqlite3.Connection, head: _Head, start: int) -> tuple[tuple[int, bytes], ...]:
    entries: list[tuple[int, bytes]] = db.execute(
        "SELECT start, data FROM entry WHERE log = ? AND start >= ? ORDER BY start, n",
        (head.id, start),
    ).fetchall()
    # The one before may reach beyond `start`: to where the next begins, or the log ends.
    end = entries[0][0] if entries else head.length
    if end > start:
        before = db.execute(
            "SELECT start, data FROM entry WHERE log = ? AND start < ?"
            " ORDER BY start DESC, n DESC LIMIT 1",
            (head.id, start),
        ).fetchone()
        entries = ([] if before is None else [before]) + entries
    return tuple(entries)


def delete(db: sqlite3.Connection, key: str) -> None:
    """`Store.log_delete`."""
    db.execute("DELETE FROM entry WHERE log IN (SELECT id FROM log WHERE key = ?)", (key,))
    db.execute("DELETE FROM log WHERE key = ?", (key,))
