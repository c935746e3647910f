"""Every kind of store, real ones on real servers."""

from __future__ import annotations

import contextlib

import pytest

from slipstream.store import MemoryStore, open_store

KINDS = ["memory", "sqlite"]


@pytest.fixture(params=KINDS)
def opened(request, tmp_path):
    """A function that opens one more store over the same data, as another gateway would."""
    kind = request.param
    if kind == "memory":
        shared = MemoryStore()
        return lambda: shared
    if kind == "sqlite":
        return lambda: open_store(f"sqlite://{tmp_path}/folder/store.db")
    server = request.getfixturevalue(kind)
    server.flush()
    return lambda: open_store(server.url)


@pytest.fixture
async def store(opened):
    async with contextlib.aclosing(Closing(opened())) as closing:
        yield closing.store


class Closing:
    """`contextlib.aclosing` for a store."""

    def __init__(self, store):
        self.store = store

    async def aclose(self):
        await self.store.close()
