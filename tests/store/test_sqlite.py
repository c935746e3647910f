"""The file: who may read it, what it refuses, several processes, kills and full disks."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import time

import pytest

from slipstream.core.errors import ConfigurationError, StoreUnavailable
from slipstream.store import Append, Document, IndexFull, open_store
from slipstream.store.sqlite import SqliteStore
from tests.store.waiting import eventually
from tests.store.writer import writer

LONG = 60.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "store.db"


@pytest.fixture
async def store(path):
    store = SqliteStore(path)
    yield store
    await store.close()


async def test_only_the_user_may_read_it(store, path):
    """The file and its side files are the user's alone, and so is a folder that was made."""
    await store.put("k", b"secret", ttl=LONG)
    for file in (path, *path.parent.iterdir()):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_it_survives_a_restart(store, path):
    """What one process wrote the next one finds: documents, logs, indexes."""
    await store.put("k", b"v", ttl=LONG)
    await store.log_open("l", 4, ttl=LONG)
    await store.log_append([Append("l", 4, 0, 2, b"ab", True, LONG)])
    await store.index_add("i", "m", ttl=LONG)
    await store.close()
    again = SqliteStore(path)
    assert await again.get("k") == Document(b"v", 1)
    view = await again.log_read("l")
    assert (view.fence, view.length, view.ended, view.entries) == (4, 2, True, ((0, b"ab"),))
    assert await again.index_list("i") == ["m"]
    await again.close()


async def test_a_closed_store_says_so(path):
    """A call after `close` fails at once."""
    store = SqliteStore(path)
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.get("k")


async def newer(path):
    store = SqliteStore(path)
    await store.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()


async def foreign(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")
    db.close()


async def noise(path):
    path.parent.mkdir()
    path.write_bytes(b"no database at all, but long enough to be one" * 100)


async def folder(path):
    path.mkdir(parents=True)


async def below_a_file(path):
    path.parent.write_text("a file")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (newer, "newer Slipstream .its schema is 2, this one knows 1"),
        (foreign, "another program"),
        (noise, "is no database"),
        (folder, "cannot be opened"),
        (below_a_file, "cannot be opened"),
    ],
)
async def test_unusable_files(path, prepare, words):
    """A file that is not ours, or of a newer schema, is refused when it is opened, and kept."""
    await prepare(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ConfigurationError, match=words):
        SqliteStore(path)
    assert before == (path.read_bytes() if path.is_file() else None)


async def test_a_file_of_before_bounds(path):
    """A file that an older Slipstream made is used as it is: its members are counted, and so are
    those that the older one adds, renews and removes afterwards."""
    await SqliteStore(path).close()
    old = sqlite3.connect(path, isolation_level=None)
    for what in (
        "TRIGGER member_comes",
        "TRIGGER member_goes",
        "INDEX member_lives",
        "TABLE census",
    ):
        old.execute(f"DROP {what}")
    add = "INSERT OR REPLACE INTO member (name, member, expires) VALUES ('i', ?, ?)"
    later = time.time() + LONG
    old.executemany(add, [("a", later), ("b", later), ("gone", 1.0)])
    store = SqliteStore(path)
    await store.index_add("i", "c", ttl=LONG, most=3)
    old.executemany(add, [("a", later), ("b", later), ("d", later)])
    old.execute("DELETE FROM member WHERE member = 'b'")
    with pytest.raises(IndexFull) as caught:
        await store.index_add("i", "e", ttl=LONG, most=3)
    assert caught.value.members == 3
    await store.index_add("i", "e", ttl=LONG, most=4)
    assert await store.index_list("i") == ["a", "c", "d", "e"]
    for member in "acde":
        await store.index_remove("i", member)
    assert old.execute("SELECT * FROM census").fetchall() == []
    old.close()
    await store.close()


async def test_a_killed_writer(path):
    """After SIGKILL in mid-write all that was acknowledged is there, and whoever comes goes on."""
    for fence in (1, 2):
        process = writer(f"sqlite://{path}", "log", fence)
        with process.stdout as acknowledged:
            for _ in range(30):
                last = int(acknowledged.readline())
            process.kill()
            last = [last, *map(int, acknowledged.read().split())][-1]
        process.wait()
        store = SqliteStore(path)
        view = await store.log_read("log")
        assert last <= view.length <= last + 1
        assert [int(data) for _, data in view.entries] == list(range(view.length))
        await store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


async def test_locked_for_too_long(path):
    """A file that another process holds is waited for so long and no longer; then it works."""
    store = SqliteStore(path, busy_timeout=0.05)
    await store.put("k", b"v", ttl=LONG)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.put("k", b"w", ttl=LONG)
    assert await store.get("k") == Document(b"v", 1)
    other.execute("ROLLBACK")
    assert await store.put("k", b"w", ttl=LONG) == 2
    other.close()
    await store.close()


async def test_locked_when_it_is_opened(path):
    """A store that cannot be made ready yet opens all the same, and works as soon as it can be."""
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    store = SqliteStore(path, busy_timeout=0.01)
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.ping()
    other.execute("ROLLBACK")
    other.close()
    await store.ping()
    await store.close()


async def test_a_write_given_up_before_its_turn_is_not_written(path):
    """A call that was cancelled while it waited for the file writes nothing when its turn comes."""
    store = SqliteStore(path, busy_timeout=10)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    calls = [asyncio.ensure_future(store.put(f"k{i}", b"v", ttl=LONG)) for i in range(3)]
    await asyncio.wait(calls, timeout=0.1)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    other.execute("ROLLBACK")
    other.close()
    await store.put("after", b"v", ttl=LONG)
    assert [await store.get(f"k{i}") for i in range(3)] == [None] * 3
    await store.close()


async def test_calls_do_not_pile_up(path):
    """Behind a file that is stuck so many calls wait and no more; the rest fail at once."""
    store = SqliteStore(path, busy_timeout=20.0)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    calls = [asyncio.ensure_future(store.put("k", b"v", ttl=LONG)) for _ in range(600)]
    await eventually(lambda: sum(call.done() for call in calls) >= 600 - 512)
    await asyncio.wait(calls, timeout=0.1)
    refused = [call for call in calls if call.done()]
    assert len(refused) == 600 - 512
    assert all("512 calls wait" in str(call.exception()) for call in refused)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    other.execute("ROLLBACK")
    other.close()
    assert await store.put("k", b"v", ttl=LONG) == 1
    await store.close()


async def test_a_full_disk(path):
    """A write that finds no room fails, harms nothing, and the next that finds room works."""
    store = SqliteStore(path)
    await store.put("k", b"v", ttl=LONG)
    await store.close()
    limit = os.sysconf("SC_PAGE_SIZE")
    code = f"""
import asyncio, resource, signal
from pathlib import Path
from slipstream.core.errors import StoreUnavailable
from slipstream.store.sqlite import SqliteStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def main():
    store = SqliteStore(Path({str(path)!r}))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * {limit}, hard))
    try:
        await store.put("k", bytes(1 << 20), ttl=60)
    except StoreUnavailable as failure:
        print(failure.message)
    assert (await store.get("k")).value == b"v"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert await store.put("k", bytes(1 << 20), ttl=60) == 2
    await store.close()

asyncio.run(main())
"""
    command = [sys.executable, "-c", code]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    assert b"full" in done.stdout or b"disk I/O" in done.stdout, done.stdout


async def test_a_file_removed_under_us(store, path):
    """A ping finds that the file is gone and makes it anew, where others will find it."""
    await store.put("k", b"v", ttl=LONG)
    for file in path.parent.iterdir():
        file.unlink()
    await store.ping()
    assert await store.get("k") is None
    await store.put("k", b"w", ttl=LONG)
    other = open_store(f"sqlite://{path}")
    assert await other.get("k") == Document(b"w", 1)
    await other.close()


async def test_what_expired_leaves_the_file(path):
    """Writes remove what has expired, some at a time, until nothing of it is left, nor its room."""
    now = time.time()
    store = SqliteStore(path, clock=lambda: now)
    for number in range(90):
        await store.put(f"k{number}", b"v", ttl=10)
        await store.index_add("i", f"m{number}", ttl=10)
        await store.log_open(f"l{number}", 1, ttl=10)
        await store.log_append([Append(f"l{number}", 1, 0, 1, b"x", False, 10)])
    await store.put("kept", b"v", ttl=100)
    await store.put("large", bytes(1 << 19), ttl=10)
    now += 50
    left = []
    db = sqlite3.connect(path)
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    for _ in range(30):
        await store.put("kept", b"v", ttl=100)
        tables = ("document", "log", "entry", "member")
        left.append([db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables])
    assert db.execute("PRAGMA page_count").fetchone()[0] < pages / 4
    db.close()
    assert left[0][1] > 80
    assert left[-1] == [1, 0, 0, 0]
    await store.close()
