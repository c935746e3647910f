"""Indexes in the session store's file. Each function runs inside a transaction of its caller."""

from __future__ import annotations

import sqlite3

from slipstream.store.interface import IndexFull


def add(
    db: sqlite3.Connection, index: str, member: str, ttl: float, most: int | None, now: float
) -> None:
    """`Store.index_add`."""
    expires = now + ttl
    if most is not None:
        row = db.execute(
            "SELECT expires FROM member WHERE name = ? AND member = ?", (index, member)
        ).fetchone()
        before = 0.0 if row is None else row[0]
        if before <= now:
            _check_room(db, index, most, now)
        expires = max(expires, before)
    db.execute(
        "INSERT OR REPLACE INTO member (name, member, expires) VALUES (?, ?, ?)",
        (index, member, expires),
    )


def _check_room(db: sqlite3.Connection, index: str, most: int, now: float) -> None:
    """Raises IndexFull. Of expired members, so many leave as stand in the way of one more."""
    row = db.execute("SELECT members FROM census WHERE name = ?", (index,)).fetchone()
    members = 0 if row is None else int(row[0])
    if members < most:
        return
    gone = db.execute(
        "SELECT name, member FROM member WHERE name = ? AND expires <= ? LIMIT ?",
        (index, now, members - most + 1),
    ).fetchall()
    if members - len(gone) >= most:
        raise IndexFull(members - len(gone))
    delete(db, gone)


def delete(db: sqlite3.Connection, members: list[tuple[str, str]]) -> None:
    """Removes (index, member), also where they are not there."""
    db.executemany("DELETE FROM member WHERE name = ? AND member = ?", members)


def listed(db: sqlite3.Connection, index: str, after: str, limit: int, now: float) -> list[str]:
    """`Store.index_list`. Expired members stay, unseen, until writes have purged them."""
    rows = db.execute(
        "SELECT member FROM member WHERE name = ? AND member > ? AND expires > ?"
        " ORDER BY member LIMIT ?",
        (index, after, now, limit),
    )
    return [row[0] for row in rows]
