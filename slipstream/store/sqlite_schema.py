"""The session store's file: how it is opened and made, and how what expired leaves it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

from slipstream.core.errors import ConfigurationError, StoreUnavailable
from slipstream.store import sqlite_index

VERSION = 1
# "SlSt": tells our files from other programs' databases.
_APPLICATION = 0x536C5374
_WAL_SECONDS = 2.0
_WAL_POLL_SECONDS = 0.02
# What one write removes of what has expired. A log takes its entries along.
_DOCUMENTS, _MEMBERS, _LOGS = 32, 64, 4
# Free pages that it gives back to the disk.
_PAGES = 64

_TABLES = (
    """CREATE TABLE document (
        key TEXT PRIMARY KEY, version INTEGER NOT NULL, expires REAL NOT NULL, value BLOB NOT NULL
    )""",
    "CREATE INDEX document_expires ON document (expires)",
    """CREATE TABLE log (
        id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, fence INTEGER NOT NULL,
        length INTEGER NOT NULL, ended INTEGER NOT NULL, beat REAL NOT NULL, expires REAL NOT NULL
    )""",
    "CREATE INDEX log_expires ON log (expires)",
    # Several entries may begin at one position: `n` keeps their order.
    """CREATE TABLE entry (
        log INTEGER NOT NULL, start INTEGER NOT NULL, n INTEGER NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (log, start, n)
    ) WITHOUT ROWID""",
    """CREATE TABLE member (
        name TEXT NOT NULL, member TEXT NOT NULL, expires REAL NOT NULL,
        PRIMARY KEY (name, member)
    ) WITHOUT ROWID""",
    "CREATE INDEX member_expires ON member (expires)",
)
# How many members each index has, expired ones included, so that a bound costs no count of them. An
# older Slipstream, to which all of this is new, may write the same file: the triggers do it for it,
# too. Where a row is replaced, only the first of them fires, and finds the old one there.
_CENSUS = (
    "CREATE TABLE census (name TEXT PRIMARY KEY, members INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO census (name, members) SELECT name, count(*) FROM member GROUP BY name",
    "CREATE INDEX member_lives ON member (name, expires)",
    """CREATE TRIGGER member_comes BEFORE INSERT ON member WHEN NOT EXISTS (
        SELECT 1 FROM member WHERE name = NEW.name AND member = NEW.member
    ) BEGIN
        INSERT INTO census (name, members)
            SELECT NEW.name, 0 WHERE NOT EXISTS (SELECT 1 FROM census WHERE name = NEW.name);
        UPDATE census SET members = members + 1 WHERE name = NEW.name;
    END""",
    """CREATE TRIGGER member_goes AFTER DELETE ON member BEGIN
        UPDATE census SET members = members - 1 WHERE name = OLD.name;
        DELETE FROM census WHERE name = OLD.name AND members <= 0;
    END""",
)


def open_file(path: Path, busy_timeout: float) -> sqlite3.Connection:
    """A connection in autocommit mode for the thread that asks; the file is made if need be.

    Raises:
        ConfigurationError: it cannot be made, is no database of ours, or of a newer Slipstream.
        StoreUnavailable: it is locked too long, or the disk fails.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its side files the mode of this one.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as failure:
        raise ConfigurationError(f"the session store {path} cannot be opened: {failure}") from None
    db = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)
    try:
        _prepare(db, path)
    except sqlite3.OperationalError as failure:
        db.close()
        raise StoreUnavailable(f"the session store {path}: {failure}") from failure
    except sqlite3.DatabaseError as failure:
        db.close()
        raise ConfigurationError(f"the session store {path} is no database: {failure}") from failure
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    _check(db, path)
    # Of no consequence but in a new file: pages that become free can be given back.
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    _use_wal(db)
    # With a WAL this loses no consistency, only the last transactions when the power fails.
    db.execute("PRAGMA synchronous = NORMAL")
    if _check(db, path) == VERSION and _has_census(db):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have made them while we waited for the lock.
        if _check(db, path) == 0:
            for statement in _TABLES:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
        if not _has_census(db):
            for statement in _CENSUS:
                db.execute(statement)
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _check(db: sqlite3.Connection, path: Path) -> int:
    """The schema's version, 0 in an empty file. Raises ConfigurationError for one we cannot use."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION and (tables or version or application):
        raise ConfigurationError(f"the session store {path} is another program's database")
    if version > VERSION:
        raise ConfigurationError(
            f"the session store {path} was made by a newer Slipstream (its schema is {version},"
            f" this one knows {VERSION}): use that, or another file"
        )
    return int(version)


def _has_census(db: sqlite3.Connection) -> bool:
    found = db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'census'")
    return found.fetchone() is not None


def _use_wal(db: sqlite3.Connection) -> None:
    """While others switch the same new file, SQLite refuses at once, whatever the busy timeout."""
    deadline = time.monotonic() + _WAL_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_WAL_POLL_SECONDS)


def purge(db: sqlite3.Connection, now: float) -> bool:
    """Removes a bounded number of expired rows; whether there may be more."""
    documents = db.execute(
        "DELETE FROM document WHERE rowid IN"
        " (SELECT rowid FROM document WHERE expires <= ? LIMIT ?)",
        (now, _DOCUMENTS),
    ).rowcount
    expired = db.execute(
        "SELECT name, member FROM member WHERE expires <= ? LIMIT ?", (now, _MEMBERS)
    ).fetchall()
    sqlite_index.delete(db, expired)
    logs = db.execute("SELECT id FROM log WHERE expires <= ? LIMIT ?", (now, _LOGS)).fetchall()
    db.executemany("DELETE FROM entry WHERE log = ?", logs)
    db.executemany("DELETE FROM log WHERE id = ?", logs)
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    for _ in range(min(free, _PAGES)):
        # One by one: of a statement without columns Python's module takes but the first step.
        db.execute("PRAGMA incremental_vacuum(1)")
    return (
        documents == _DOCUMENTS or len(expired) == _MEMBERS or len(logs) == _LOGS or free > _PAGES
    )
