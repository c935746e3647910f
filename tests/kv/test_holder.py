"""The lease table, with an engine stepped by hand: what may be held, how long, what gives way."""

from __future__ import annotations

import pytest
import torch

from slipstream.core.errors import InvalidRequest, KvExpired, KvNotFound, Overloaded
from slipstream.core.params import SamplingParams
from slipstream.core.prefix import Prefix
from slipstream.engine.batch import Segment
from slipstream.engine.kv_rows import as_tensor
from slipstream.engine.sequence import Sequence
from tests.kv.rig import rows_of
from tests.verifier.rig import Rig
from verifier_service.kv_holder import KvHolder
from verifier_service.kv_lease import Lease, Read
from verifier_service.plan import Limits

PROMPT = tuple(range(10, 60))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class HolderRig(Rig):
    """Beside the engine, a clock that stands still."""

    def __init__(self, runner, *, chunk: int = 16, limits: Limits | None = None, **bounds) -> None:
        self.clock = Clock()
        self.kv = KvHolder(runner, clock=self.clock, **bounds)
        limits = limits or Limits(prefill_chunk=chunk, strict=True)
        super().__init__(runner, limits=limits, kv=self.kv)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    def lease(self, tokens=PROMPT, length: int | None = None, **how) -> Lease:
        prefix = self.chain(tokens).at(len(tokens) if length is None else length)
        return self.kv.acquire(prefix, how.get("number"), how.get("seconds", 10.0))

    def read(self, lease: Lease, start: int, end: int | None, layers=(0, 1), most: int = 8) -> Read:
        key = object()
        self.kv.begin_pull(key, lease.id, layers, start, lease.prefix.length)
        read = Read(key, start, end, most)
        self.kv.read(read)
        return read


@pytest.fixture
def runner(make_runner):
    made = make_runner(blocks=60)
    yield made
    assert made.pool.num_used == 0


def test_reads_come_as_they_are_computed(runner) -> None:
    """A lease on a prompt that is being prefilled: each range comes once its rows are there, with
    the bytes of the pool and the name of its prefix."""
    rig = HolderRig(runner)
    rig.submit(PROMPT, max_tokens=8)
    rig.steps(1)
    lease = rig.lease()
    reads = [rig.read(lease, start, start + 10) for start in (0, 10, 20)]
    rig.kv.serve()
    assert [read.done.done() for read in reads] == [True, False, False]
    rig.steps(2)
    assert [read.done.done() for read in reads] == [True, True, True]
    table = lease.text.table
    for read in reads:
        rows = read.done.result()
        wanted = rows_of(runner, table, (0, 1), rows.start, rows.end)
        assert torch.equal(as_tensor(memoryview(rows.data.numpy()), "float32"), wanted.flatten())
        assert rows.prefix == rig.chain(PROMPT).at(rows.end)
    rig.engine.close()


def test_following(runner) -> None:
    """A read without an end gives what was committed since, at most so much; None at the end."""
    rig = HolderRig(runner, chunk=64)
    outcome = rig.submit(PROMPT, max_tokens=6, ignore_eos=True)
    rig.steps(1)
    lease = rig.lease()
    read = rig.read(lease, 50, None)
    rig.kv.serve()
    assert not read.done.done()
    rig.steps(3)
    rows = read.done.result()
    assert (rows.start, rows.end) == (50, 51)
    assert rows.prefix == rig.chain([*PROMPT, *outcome.tokens]).at(51)
    rest = Read(read.key, 51, None, 1)
    rig.kv.read(rest)
    rig.kv.serve()
    assert rest.done.result().end == 52
    last = Read(read.key, 90, None, 8)
    rig.kv.read(last)
    rig.steps(6)
    assert outcome.ended
    assert last.done.result() is None
    rig.engine.close()


def test_outlives_its_sequence(runner) -> None:
    """When the sequence has ended its lease holds the prefix's blocks and no more, unchanged,
    until it is released; another lease can be had on a part of it."""
    rig = HolderRig(runner)
    outcome = rig.submit(PROMPT, max_tokens=200)
    rig.steps(5)
    lease = rig.lease()
    before = rows_of(runner, lease.text.table, (0, 1), 0, 50).clone()
    outcome.cancel()
    rig.steps(1)
    assert runner.pool.num_used == 4 == rig.kv.num_kept
    other = rig.submit(tuple(range(3, 40)), max_tokens=100)
    rig.steps(4)
    read = rig.read(lease, 0, 50)
    rig.kv.serve()
    data = as_tensor(memoryview(read.done.result().data.numpy()), "float32")
    assert torch.equal(data, before.flatten())
    part = rig.lease(length=20)
    rig.kv.release(lease.id)
    other.cancel()
    rig.steps(1)
    assert runner.pool.num_used == 2
    rig.kv.release(part.id)
    rig.kv.release(part.id)
    assert runner.pool.num_used == 0


def test_a_sequence_that_loses_its_place(runner) -> None:
    """A lease of a running sequence holds no blocks; while the sequence has none itself reads wait,
    and go on where they were once it has computed them again, wherever that is."""
    rig = HolderRig(runner, chunk=64)
    sequence = Sequence((*PROMPT, 5, 6), len(PROMPT), SamplingParams(), runner.loaded.fingerprint)

    def compute() -> None:
        sequence.table = runner.pool.allocate(64)
        runner.forward([Segment(sequence.tokens, 0, sequence.table, 0)])
        sequence.computed = len(sequence)

    compute()
    rig.kv.started(1, sequence)
    lease = rig.lease()
    assert runner.pool.num_used == 4
    runner.pool.release(sequence.table)
    sequence.table, sequence.computed = None, 0
    reads = [rig.read(lease, 0, 50), rig.read(lease, 50, None)]
    rig.kv.serve()
    assert not any(read.done.done() for read in reads)
    other = runner.pool.allocate(16)
    compute()
    rig.kv.serve()
    for read, (start, end) in zip(reads, ((0, 50), (50, 52)), strict=True):
        rows = read.done.result()
        assert (rows.start, rows.end) == (start, end)
        wanted = rows_of(runner, sequence.table, (0, 1), start, end)
        assert torch.equal(as_tensor(memoryview(rows.data.numpy()), "float32"), wanted.flatten())
    for table in (sequence.table, other):
        runner.pool.release(table)
    sequence.table, sequence.computed = None, 0
    rig.kv.ended(1)
    assert lease.gone
    assert (rig.kv.num_kept, runner.pool.num_used) == (0, 0)


def test_expiry_and_renewal(runner) -> None:
    """A lease is gone at its time, unless renewed; while it is pulled its time does not count."""
    rig = HolderRig(runner)
    rig.submit(PROMPT, max_tokens=200).cancel()
    outcome = rig.submit(PROMPT, max_tokens=200)
    rig.steps(5)
    short, renewed, pulled = rig.lease(), rig.lease(), rig.lease()
    key = object()
    rig.kv.begin_pull(key, pulled.id, (0,), 0, 50)
    rig.clock.now += 9
    assert rig.kv.renew(renewed.id, 10).expiry == rig.clock.now + 10
    rig.clock.now += 1
    rig.kv.serve()
    with pytest.raises(KvExpired):
        rig.kv.renew(short.id, 10)
    assert rig.kv.num_leases == 2
    rig.kv.end_pull(key)
    rig.kv.end_pull(key)
    rig.kv.serve()
    assert rig.kv.num_leases == 1
    with pytest.raises(KvExpired):
        rig.kv.begin_pull(object(), short.id, (0,), 0, 50)
    rig.clock.now += 9
    rig.kv.serve()
    assert rig.kv.num_leases == 0
    outcome.cancel()
    rig.steps(1)


def test_what_is_not_here(runner) -> None:
    """Prefixes that nobody has, layers and ranges that a lease does not cover."""
    rig = HolderRig(runner)
    outcome = rig.submit(PROMPT, max_tokens=8)
    rig.steps(1)
    for prefix in (Prefix(50, bytes(16)), rig.chain([*PROMPT, 1]).at(51), Prefix(9, b"")):
        with pytest.raises(KvNotFound):
            rig.kv.acquire(prefix, None, 10.0)
    lease = rig.lease(length=20)
    for layers, start, end in [
        ((), 0, 9),
        ((0, 2), 0, 9),
        ((0, 0), 0, 9),
        ((0,), 9, 8),
        ((0,), 0, 21),
    ]:
        with pytest.raises(InvalidRequest):
            rig.kv.begin_pull(object(), lease.id, layers, start, end)
    outcome.cancel()
    rig.steps(1)
    # It ended after 16 positions: 20 will never be there.
    assert rig.kv.num_leases == 0
    with pytest.raises(KvExpired):
        rig.kv.begin_pull(object(), lease.id, (0,), 0, 9)


def test_the_sequence_that_is_meant(runner) -> None:
    """Of two sequences with one prompt, what follows comes from the one that was named."""
    rig = HolderRig(runner, chunk=64)
    outcomes = [rig.submit(PROMPT, max_tokens=9) for _ in range(2)]
    rig.steps(4)
    numbers = list(rig.kv._running)
    for number in numbers:
        assert rig.lease(number=number).text is rig.kv._running[number]
    assert rig.lease(number=999).text is rig.kv._running[numbers[0]]
    for outcome in outcomes:
        outcome.cancel()
    rig.steps(1)
    rig.engine.close()


def test_bounds(runner) -> None:
    """There are at most so many leases; those of ended sequences keep at most their share of the
    pool, the oldest giving way, while a running sequence's cost nothing."""
    rig = HolderRig(runner, chunk=64, most=3, share=0.15)  # 9 blocks
    prompts = [tuple(range(i, i + 60)) for i in (5, 6, 7)]
    outcomes = [rig.submit(prompt, max_tokens=99, ignore_eos=True) for prompt in prompts]
    rig.steps(6)
    leases = [rig.lease(prompt) for prompt in prompts]
    with pytest.raises(Overloaded):
        rig.lease(prompts[0])
    used = runner.pool.num_used
    for outcome in outcomes:
        outcome.cancel()
    rig.steps(1)
    assert used > runner.pool.num_used == 8 == rig.kv.num_kept
    assert [lease.gone for lease in leases] == [True, False, False]
    rig.engine.close()


def test_pulls_of_a_lease_are_bounded(runner) -> None:
    """Each keeps chunks for its puller, so there are four at a time, and room again when one ends;
    one that was refused takes no place and leaves the lease to expire."""
    rig = HolderRig(runner, chunk=64)
    outcome = rig.submit(PROMPT, max_tokens=99, ignore_eos=True)
    rig.steps(2)
    lease = rig.lease()

    def begin(key: str) -> None:
        rig.kv.begin_pull(key, lease.id, (0,), 0, 1)

    for key in "abcd":
        begin(key)
    with pytest.raises(Overloaded, match="4 pulls"):
        begin("e")
    rig.kv.end_pull("e")
    rig.kv.end_pull("b")
    begin("f")
    for key in "acdf":
        rig.kv.end_pull(key)
    rig.clock.now += 11
    rig.steps(1)
    assert lease.gone
    outcome.cancel()
    rig.steps(1)
    rig.engine.close()


def test_a_waiting_request_goes_first(runner) -> None:
    """Leases of ended sequences are given up where a request needs their room, and no more of them
    than it needs; none where even all would not be enough."""
    rig = HolderRig(runner, chunk=64, share=1.0)
    long = tuple(4 + i % 60 for i in range(300))
    kept = rig.submit(long, max_tokens=100, ignore_eos=True)  # 23 blocks
    prompts = [tuple(range(i, i + 60)) for i in (5, 6)]
    ended = [rig.submit(prompt, max_tokens=60, ignore_eos=True) for prompt in prompts]
    rig.steps(20)
    leases = [rig.lease(tokens) for tokens in (long, *prompts)]
    for outcome in ended:
        outcome.cancel()
    rig.steps(1)
    assert runner.pool.num_used == 23 + 8
    # 29 blocks are free, and one must be left for the one that runs.
    last = rig.submit(tuple(8 + i % 60 for i in range(29 * 16 - 5)), max_tokens=5)
    rig.steps(1)
    assert rig.engine.num_waiting == 0
    assert [lease.gone for lease in leases] == [False, True, False]
    # More than there is, whatever is given up: it waits for the running ones.
    late = rig.submit(tuple(9 + i % 60 for i in range(110)), max_tokens=60)
    rig.steps(1)
    assert rig.engine.num_waiting == 1
    assert [lease.gone for lease in leases] == [False, True, False]
    for outcome in (kept, last, late):
        outcome.cancel()
    rig.steps(2)
    rig.engine.close()


def test_a_lease_that_is_being_read_gives_way_last(runner) -> None:
    """Of leases whose sequences ended, those that nobody pulls are given up first, the oldest of
    them before the others."""
    rig = HolderRig(runner, chunk=64, share=1.0)
    prompts = [tuple(range(i, i + 60)) for i in (5, 6, 7)]
    outcomes = [rig.submit(prompt, max_tokens=60, ignore_eos=True) for prompt in prompts]
    rig.steps(6)
    pulled, older, newer = (rig.lease(tokens) for tokens in prompts)
    rig.read(pulled, 0, 10)
    for outcome in outcomes:
        outcome.cancel()
    rig.steps(1)
    gone = []
    while rig.kv.give_up():
        gone.append([lease.gone for lease in (pulled, older, newer)])
    assert gone == [[False, True, False], [False, True, True], [True, True, True]]
    assert runner.pool.num_used == rig.kv.num_kept == 0
