"""A process that writes to a store: `python -m tests.store.writer URL count|log NUMBER`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from slipstream.core.child_processes import dying_with_us
from slipstream.store import Append, VersionConflict, open_store


async def count(store, times):
    """Adds 1 to the document `n` so many times, by compare-and-set."""
    while times:
        found = await store.get("n")
        value, version = (b"0", 0) if found is None else (found.value, found.version)
        try:
            await store.put("n", b"%d" % (int(value) + 1), ttl=60, expect=version)
            times -= 1
        except VersionConflict:
            pass


async def log(store, fence):
    """Appends to a log for ever and prints what is acknowledged."""
    position = (await store.log_open("log", fence, ttl=60)).length
    while True:
        await store.log_append([Append("log", fence, position, 1, b"%d" % position, False, 60)])
        position += 1
        sys.stdout.write(f"{position}\n")
        sys.stdout.flush()


async def main(url, what, number):
    store = open_store(url, timeout=30)
    await (count if what == "count" else log)(store, number)
    await store.close()


def writer(url, what, number):
    """Starts this file as a process."""
    command = [sys.executable, "-m", "tests.store.writer", url, what, str(number)]
    return subprocess.Popen(
        dying_with_us(command),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
