"""Any sequence of calls has the same answers from every store as from the one in memory."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from slipstream.store import (
    Append,
    Fenced,
    IndexFull,
    LogView,
    MemoryStore,
    VersionConflict,
    open_store,
)

LONG = 600.0

keys = st.sampled_from(["session/a/{1}", "session/a/2", "gen/}x{"])
logs = st.sampled_from(["gen/a/0", "gen/{a}/1"])
members = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=3)
fences = st.integers(0, 4) | st.integers(2**53, 2**53 + 2)
appends = st.builds(
    Append,
    log=logs,
    fence=fences,
    start=st.integers(0, 6),
    count=st.integers(0, 3),
    data=st.binary(max_size=4),
    ended=st.sampled_from([False, False, False, True]),
    ttl=st.just(LONG),
)


class Machine(RuleBasedStateMachine):
    def __init__(self, open_one):
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = MemoryStore()
        self.store = self.runner.run(open_one())

    def teardown(self):
        self.runner.run(self.store.close())
        self.runner.close()

    def both(self, call):
        expected, found = (self.runner.run(answer(call, one)) for one in (self.model, self.store))
        assert found == expected

    @rule(key=keys)
    def get(self, key):
        self.both(lambda store: store.get(key))

    @rule(key=keys, value=st.binary(max_size=40), expect=st.none() | st.integers(0, 4))
    def put(self, key, value, expect):
        self.both(lambda store: store.put(key, value, ttl=LONG, expect=expect))

    @rule(key=keys, expect=st.none() | st.integers(0, 4))
    def delete(self, key, expect):
        self.both(lambda store: store.delete(key, expect=expect))

    @rule(log=logs, fence=fences)
    def log_open(self, log, fence):
        self.both(lambda store: store.log_open(log, fence, ttl=LONG))

    @rule(items=st.lists(appends, max_size=5))
    def log_append(self, items):
        self.both(lambda store: store.log_append(items))

    @rule(log=logs, count=st.integers(0, 3), data=st.binary(max_size=4), ended=st.booleans())
    def log_goes_on(self, log, count, data, ended):
        view = self.runner.run(self.model.log_read(log))
        if view is not None:
            item = Append(log, view.fence, view.length, count, data, ended and count == 3, LONG)
            self.both(lambda store: store.log_append([item]))

    @rule(log=logs, start=st.integers(0, 9))
    def log_read(self, log, start):
        self.both(lambda store: store.log_read(log, start))

    @rule(log=logs)
    def log_delete(self, log):
        self.both(lambda store: store.log_delete(log))

    @rule(member=members, most=st.none() | st.integers(0, 4))
    def index_add(self, member, most):
        self.both(lambda store: store.index_add("sessions/{", member, ttl=LONG, most=most))

    @rule(member=members)
    def index_remove(self, member):
        self.both(lambda store: store.index_remove("sessions/{", member))

    @rule(after=st.just("") | members, limit=st.integers(1, 4))
    def index_list(self, after, limit):
        self.both(lambda store: store.index_list("sessions/{", after, limit))


async def answer(call, store):
    """What a call ends with, to compare; an age is none of it."""
    try:
        found = await call(store)
    except VersionConflict as conflict:
        return "conflict", conflict.current
    except Fenced as fenced:
        return "fenced", fenced.fence
    except IndexFull as full:
        return "full", full.members
    if isinstance(found, LogView):
        return found.fence, found.length, found.ended, found.entries
    return found


@pytest.mark.parametrize("kind", ["sqlite", "redis", "cluster"])
def test_like_the_store_in_memory(url_of, kind, tmp_path):
    """Random calls, made one after the other, find the same as the model does."""

    async def open_one():
        for file in tmp_path.glob("folder/*"):
            file.unlink()
        return open_store(url_of(kind), timeout=30)

    run_state_machine_as_test(
        lambda: Machine(open_one),
        settings=settings(
            max_examples=10,
            database=None,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
