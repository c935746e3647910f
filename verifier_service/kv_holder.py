"""The verifier's leases on keys and values: who may read what, and for how long it stays."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from slipstream.core.errors import InvalidRequest, KvExpired, KvNotFound, Overloaded
from slipstream.core.prefix import Prefix
from slipstream.engine.kv_pool import BlockTable
from slipstream.engine.kv_rows import read_rows
from slipstream.engine.runner import ModelRunner
from slipstream.engine.sequence import Sequence
from verifier_service.kv_lease import Lease, NamedBlocks, Read, Rows, Text

# Bytes that are copied between two steps: a few milliseconds at the speed of memory.
_STEP_BYTES = 16 * 2**20
# Pulls of one lease at a time: a puller needs one, and each holds chunks that may never be read.
_MOST_PULLS = 4


class KvHolder:
    """Lease table and reads. Everything on the engine's thread.

    Leases of sequences that ended are worth less than a request that waits: they are given up
    first when the pool is full, and never hold more than their share of it.

    Args:
        most: leases at once.
        share: of the pool's blocks that leases may keep beyond their sequences; those of blocks by
            their names do not count.
        clock: seconds since the epoch.

    Attributes:
        num_kept: blocks that leases hold beyond their sequences, counted once for each lease.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        most: int = 512,
        share: float = 0.25,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = runner.pool
        self._places = {layer: i for i, layer in enumerate(runner.loaded.kv_layers)}
        self._most, self._clock = most, clock
        self._most_kept = int(share * self._pool.num_blocks)
        self.num_kept = 0
        self._running: dict[int, Sequence] = {}
        self._leases: dict[str, Lease] = {}
        self._pulls: dict[object, _Pull] = {}
        self._reads: deque[Read] = deque()

    # ---- what the engine tells -------------------------------------------------------------

    def started(self, number: int, sequence: Sequence) -> None:
        """A sequence has a place in the pool; it may lose that and get another until it ends."""
        self._running[number] = sequence

    def ended(self, number: int) -> None:
        """A sequence is about to give its blocks back; leases keep those of their prefix."""
        sequence = self._running.pop(number)
        for lease in self._of(sequence):
            lease.running, length = False, lease.prefix.length
            if sequence.table is None or sequence.computed < length:
                self._drop(lease)
            else:
                lease.table = self._pool.retain(sequence.table, length)
                self.num_kept += len(lease.table.blocks)
        self._keep_to_share()

    def close(self) -> None:
        """The engine ends: nothing is kept, nobody waits on."""
        for lease in list(self._leases.values()):
            self._drop(lease)
        self.serve()

    def give_up(self) -> bool:
        """Drops a lease of a sequence that ended, for its room; False: there is none.

        The oldest, of those that nobody pulls where there are any.
        """
        return self._drop_oldest(lease for lease in self._leases.values() if not lease.running)

    def serve(self) -> bool:
        """Between two steps: ends leases, answers reads. True where there is more to copy."""
        now = self._clock()
        for lease in [x for x in self._leases.values() if not x.pulls and x.expiry <= now]:
            self._drop(lease)
        left, waiting = _STEP_BYTES, deque[Read]()
        while self._reads:
            read = self._reads.popleft()
            copied = self._answer(read) if left > 0 else None
            if copied is None:
                waiting.append(read)
            else:
                left -= copied
        self._reads = waiting
        return left <= 0

    # ---- what pullers ask ------------------------------------------------------------------

    @property
    def num_leases(self) -> int:
        return len(self._leases)

    @property
    def num_pulls(self) -> int:
        """Under way; any thread may ask."""
        return len(self._pulls)

    def acquire(self, prefix: Prefix, number: int | None, seconds: float) -> Lease:
        """A lease on a prefix that a running sequence has, or that another lease keeps.

        Args:
            number: of the sequence that is preferred among those with the prefix.

        Raises:
            KvNotFound: nobody has it. Overloaded: there are too many leases.
        """
        found = self._find(prefix, number)
        if found is None:
            raise KvNotFound(f"nothing here has the prefix of {prefix.length} tokens asked for")
        self._check_room()
        text, table = found
        lease = Lease(
            # Nobody else's to guess: whoever knows it can release it.
            id=secrets.token_hex(8),
            prefix=prefix,
            text=text,
            table=table and self._pool.retain(table, prefix.length),
            expiry=self._clock() + seconds,
            running=table is None,
        )
        self._grant(lease)
        return lease

    def acquire_blocks(self, names: tuple[bytes, ...], seconds: float) -> Lease:
        """A lease on the longest run of blocks with these names, whoever computed them.

        They are cache that is about to be read, and stay so: it counts for no share.

        Raises:
            KvNotFound: not one is here. Overloaded: there are too many leases.
        """
        self._check_room()
        table = self._pool.hold(names)
        if table is None:
            raise KvNotFound("no block of the prefix asked for is here")
        text = NamedBlocks(names[: len(table.blocks)])
        lease = Lease(
            id=secrets.token_hex(8),
            prefix=text.chain.at(text.computed),
            text=text,
            table=table,
            expiry=self._clock() + seconds,
            running=False,
        )
        self._grant(lease)
        return lease

    def renew(self, lease_id: str, seconds: float) -> Lease:
        """Raises KvExpired."""
        lease = self._get(lease_id)
        lease.expiry = max(lease.expiry, self._clock() + seconds)
        return lease

    def release(self, lease_id: str) -> None:
        lease = self._leases.get(lease_id)
        if lease is not None:
            self._drop(lease)

    def begin_pull(
        self, key: object, lease_id: str, layers: tuple[int, ...], start: int, end: int
    ) -> None:
        """A pull of positions [start, end) of some layers: until `end_pull` its lease stays.

        Args:
            key: names the pull.

        Raises:
            KvExpired, InvalidRequest. Overloaded: the lease is pulled several times already.
        """
        lease = self._get(lease_id)
        if not layers or not set(layers) <= self._places.keys():
            known = sorted(self._places)
            raise InvalidRequest(f"layers must be among {known}, got {list(layers)[: len(known)]}")
        # Each layer once: what is copied between two steps would grow with the list, not the model.
        if len(set(layers)) < len(layers):
            raise InvalidRequest(f"{len(layers)} layers, of which {len(set(layers))} are different")
        if not 0 <= start <= end <= lease.prefix.length:
            raise InvalidRequest(
                f"positions {start} to {end} are not within the lease's {lease.prefix.length}"
            )
        if lease.pulls >= _MOST_PULLS:
            raise Overloaded(f"{lease.pulls} pulls of this KV lease are under way already")
        lease.pulls += 1
        places = torch.tensor([self._places[layer] for layer in layers])
        places = places.to(self._pool.keys[0].device)
        self._pulls[key] = _Pull(lease, places)

    def end_pull(self, key: object) -> None:
        """Also where the pull never began."""
        pull = self._pulls.pop(key, None)
        if pull is not None:
            pull.lease.pulls -= 1

    def read(self, read: Read) -> None:
        """Queues a read of a pull that began; it is answered when its positions are there."""
        self._reads.append(read)

    # ---- inside ----------------------------------------------------------------------------

    def _check_room(self) -> None:
        if len(self._leases) >= self._most:
            raise Overloaded(f"{self._most} KV leases are out already")

    def _grant(self, lease: Lease) -> None:
        self._leases[lease.id] = lease
        self.num_kept += len(lease.table.blocks) if lease.table else 0
        self._keep_to_share()

    def _get(self, lease_id: str) -> Lease:
        lease = self._leases.get(lease_id)
        if lease is None:
            raise KvExpired(f"the KV lease {lease_id} is gone")
        return lease

    def _find(self, prefix: Prefix, number: int | None) -> tuple[Text, BlockTable | None] | None:
        """A sequence with the prefix, and the blocks of one that has ended."""
        preferred = None if number is None else self._running.get(number)
        running = [preferred] if preferred is not None else []
        for sequence in (*running, *self._running.values()):
            if sequence.chain.names(prefix):
                return sequence, None
        for lease in self._leases.values():
            if prefix.length <= lease.prefix.length and lease.text.chain.names(prefix):
                return lease.text, lease.table
        return None

    def _of(self, sequence: Sequence) -> list[Lease]:
        return [lease for lease in self._leases.values() if lease.text is sequence]

    def _drop(self, lease: Lease) -> None:
        del self._leases[lease.id]
        lease.gone = True
        if lease.table is not None:
            self.num_kept -= len(lease.table.blocks)
            self._pool.release(lease.table)

    def _keep_to_share(self) -> None:
        """Drops leases of ended sequences until the rest is within its share."""
        kept = True
        while kept:
            ended = [x for x in self._leases.values() if not (x.running or x.of_blocks)]
            blocks = sum(len(lease.table.blocks) for lease in ended if lease.table is not None)
            kept = blocks > self._most_kept and self._drop_oldest(ended)

    def _drop_oldest(self, leases: Iterable[Lease]) -> bool:
        lease = min(leases, key=lambda lease: lease.pulls > 0, default=None)
        if lease is not None:
            self._drop(lease)
        return lease is not None

    def _answer(self, read: Read) -> int | None:
        """How many bytes were copied for a read; None where it has to wait on."""
        pull = self._pulls.get(read.key)
        if read.done.cancelled():
            return 0
        if read.end is None and (pull is None or not pull.lease.running):
            return _resolve(read, None)
        if pull is None or pull.lease.gone:
            return _fail(read, KvExpired("the KV lease is gone"))
        lease, text = pull.lease, pull.lease.text
        end = min(read.start + read.most, text.computed) if read.end is None else read.end
        if end <= read.start or end > text.computed:
            return None
        table = lease.table or text.table
        assert table is not None, "what is computed has its place"
        try:
            data = read_rows(self._pool, table, pull.layers, read.start, end, read.out)
        except Exception as failure:
            return _fail(read, failure)
        return _resolve(read, Rows(read.start, end, text.chain.at(end), data))


@dataclass(frozen=True, slots=True)
class _Pull:
    """A pull under way: its lease, and the layers' places in the pool."""

    lease: Lease
    layers: torch.Tensor


def _resolve(read: Read, rows: Rows | None) -> int:
    if read.done.set_running_or_notify_cancel():
        read.done.set_result(rows)
    return 0 if rows is None else rows.data.numel()


def _fail(read: Read, failure: Exception) -> int:
    if read.done.set_running_or_notify_cancel():
        read.done.set_exception(failure)
    return 0
