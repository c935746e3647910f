"""Leases on keys and values, and reads of what they promise, as values."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import torch

from slipstream.core.prefix import Prefix
from slipstream.engine.kv_pool import BLOCK_TOKENS, BlockTable


class Names(Protocol):
    """Names of a text's prefixes."""

    def at(self, length: int) -> Prefix: ...

    def names(self, prefix: Prefix) -> bool: ...


class Text(Protocol):
    """Tokens that have keys and values: a sequence, or blocks that one has left behind.

    Attributes:
        computed: positions that have theirs.
        table: where; None where it is a lease that holds them, or nobody.
    """

    @property
    def chain(self) -> Names: ...

    @property
    def computed(self) -> int: ...

    @property
    def table(self) -> BlockTable | None: ...


class BlockNames:
    """What is known of a text by the names of its blocks alone."""

    def __init__(self, names: tuple[bytes, ...]) -> None:
        self._names = names

    def at(self, length: int) -> Prefix:
        """With an empty hash where that is not the end of a block: nobody here knows its name."""
        blocks, over = divmod(length, BLOCK_TOKENS)
        return Prefix(length, b"" if over or not blocks else self._names[blocks - 1])

    def names(self, prefix: Prefix) -> bool:
        blocks, over = divmod(prefix.length, BLOCK_TOKENS)
        known = not over and 0 < blocks <= len(self._names)
        return known and self._names[blocks - 1] == prefix.hash


class NamedBlocks:
    """Full blocks of the pool, known by their names."""

    table: BlockTable | None = None

    def __init__(self, names: tuple[bytes, ...]) -> None:
        self.chain = BlockNames(names)
        self.computed = len(names) * BLOCK_TOKENS


@dataclass(slots=True, eq=False)
class Lease:
    """A promise to give a prefix's keys and values to whoever asks for them in time.

    Attributes:
        text: what the prefix is of.
        table: the prefix's blocks, held by the lease itself; None while its sequence runs and holds
            them, or is to compute them (again).
        expiry: seconds since the epoch; counts only while nobody pulls.
        running: whether its sequence still grows.
    """

    id: str
    prefix: Prefix
    text: Text
    table: BlockTable | None
    expiry: float
    running: bool
    pulls: int = 0
    gone: bool = False

    @property
    def of_blocks(self) -> bool:
        """Whether it is of blocks by their names, no sequence's."""
        return isinstance(self.text, NamedBlocks)


@dataclass(frozen=True, slots=True)
class Rows:
    """What a read gave: the bytes of [start, end), and the name of the first `end` tokens."""

    start: int
    end: int
    prefix: Prefix
    data: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Somebody waits for positions of a lease.

    Attributes:
        key: of the pull that it belongs to.
        end: None for what there is behind `start`, at most `most` positions of a running sequence.
        out: takes the bytes, None for a new tensor.
        done: gets the rows; None where the sequence ended before `start`.
    """

    key: object
    start: int
    end: int | None
    most: int = 0
    out: torch.Tensor | None = None
    done: Future[Rows | None] = field(default_factory=Future)
