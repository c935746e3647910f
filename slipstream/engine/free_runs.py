"""Free blocks of a pool, as runs of consecutive numbers."""

from __future__ import annotations

from collections.abc import Iterable


class FreeRuns:
    """Hands out blocks side by side where it can; what is given back joins its neighbours.

    Runs are kept in classes of length (class c: 2^(c-1) to 2^c - 1 blocks), so that taking and
    giving cost what they touch, however many runs there are.

    Args:
        first, count: the blocks that there are, all free.
    """

    def __init__(self, first: int, count: int) -> None:
        self._count = 0
        self._length: dict[int, int] = {}  # of the run that begins at a block
        self._begin: dict[int, int] = {}  # of the run that ends before a block
        # Dictionaries are sets in a reproducible order.
        self._classes: list[dict[int, None]] = [{} for _ in range(count.bit_length() + 1)]
        if count:
            self._add(first, count)

    def __len__(self) -> int:
        return self._count

    def give(self, blocks: Iterable[int]) -> None:
        """Blocks that were taken are free again."""
        begin = end = 0
        for block in blocks:
            if block != end:
                self._join(begin, end)
                begin = block
            end = block + 1
        self._join(begin, end)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Takes `count` blocks, in the order in which they are to be used; so many are free.

        Args:
            after: the block that they continue. Those that follow it come first, and small runs
                then, so that long ones stay. None begins something new: one run where any is long
                enough, out of its middle, so that it and its neighbour can both grow in place.
        """
        taken: list[int] = []
        if after is None:
            run = self._long(count)
            if run is not None:
                return self._cut(run, (self._length[run] - count) // 2, count)
        elif after + 1 in self._length:
            taken = self._cut(after + 1, 0, min(count, self._length[after + 1]))
        while len(taken) < count:
            run = next(iter(next(runs for runs in self._classes if runs)))
            taken += self._cut(run, 0, min(count - len(taken), self._length[run]))
        return taken

    def _long(self, count: int) -> int | None:
        """A run of at least `count` blocks, among the longest; None where there is none."""
        longest = next((runs for runs in reversed(self._classes) if runs), {})
        return next((run for run in longest if self._length[run] >= count), None)

    def _cut(self, run: int, offset: int, count: int) -> list[int]:
        length = self._remove(run)
        if offset:
            self._add(run, offset)
        if offset + count < length:
            self._add(run + offset + count, length - offset - count)
        return list(range(run + offset, run + offset + count))

    def _join(self, begin: int, end: int) -> None:
        if begin == end:
            return
        if end in self._length:
            end += self._remove(end)
        if begin in self._begin:
            begin = self._begin[begin]
            self._remove(begin)
        self._add(begin, end - begin)

    def _add(self, begin: int, length: int) -> None:
        self._count += length
        self._length[begin] = length
        self._begin[begin + length] = begin
        self._classes[length.bit_length()][begin] = None

    def _remove(self, begin: int) -> int:
        length = self._length.pop(begin)
        self._count -= length
        del self._begin[begin + length]
        del self._classes[length.bit_length()][begin]
        return length
