"""Room in the pool for keys and values that were computed elsewhere. All on the engine's thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from slipstream.core.errors import Overloaded
from slipstream.core.prefix import PrefixChain
from slipstream.engine.kv_pool import BLOCK_TOKENS, BlockTable
from slipstream.engine.kv_rows import row_bytes, write_rows
from verifier_service.engine import VerifierEngine

# Of the pool, for all that is on its way together: it may be in vain.
_MOST_SHARE = 0.5


@dataclass(slots=True, eq=False)
class Intake:
    """A prefix that is on its way into the pool.

    Attributes:
        table: its blocks; those before `start` were here.
        start, end: the positions that are wanted.
        written: what is before it has come.
        seconds: that computing them would take, as far as is known.
    """

    table: BlockTable
    start: int
    end: int
    written: int
    seconds: float


class Intakes:
    """Gives room to what comes, and makes cache of it: nobody else holds it, so it may give way."""

    def __init__(self, engine: VerifierEngine) -> None:
        self._engine = engine
        self._pool = engine.runner.pool
        loaded = engine.runner.loaded
        self._places = torch.arange(len(loaded.kv_layers), device=loaded.device)
        self._taken = 0

    def missing(self, names: Sequence[bytes]) -> int:
        """How many blocks of a prefix are not here."""
        return len(names) - self._pool.count(names)

    def begin(self, names: Sequence[bytes]) -> Intake | None:
        """Room for a prefix whose blocks have these names; None where all of it is here.

        Raises:
            Overloaded: there is no room that nobody needs.
        """
        pool, need = self._pool, self.missing(names)
        if not need:
            return None
        # A block for each that runs: else some would soon lose their place.
        short = need + self._engine.num_running > pool.num_free
        if short or self._taken + need > _MOST_SHARE * pool.num_blocks:
            raise Overloaded(f"the pool has no {need} blocks to spare")
        here = pool.hold(names)
        table = pool.allocate(len(names) * BLOCK_TOKENS, here)
        if table is None:
            if here is not None:
                pool.release(here)
            raise Overloaded(f"the pool has no {need} blocks to spare")
        self._taken += need
        start, end = (len(names) - need) * BLOCK_TOKENS, len(names) * BLOCK_TOKENS
        return Intake(table, start, end, start, self._seconds(end - start))

    def write(self, intake: Intake, end: int, rows: torch.Tensor) -> None:
        """Keys and values of the positions that follow what is written, up to `end`.

        Nothing is cleared before: only whole blocks are ever read.

        Raises:
            ValueError: there are more of them, or fewer.
        """
        write_rows(self._pool, intake.table, self._places, intake.written, end, rows)
        intake.written = end

    def end(self, intake: Intake, chain: PrefixChain, *, keep: bool) -> None:
        """No more will come; whole blocks that did are cache from now on.

        Args:
            chain: names the prefix.
            keep: whether to trust what came.
        """
        self._taken -= (intake.end - intake.start) // BLOCK_TOKENS
        blocks = (intake.written - intake.start) // BLOCK_TOKENS
        if keep and blocks:
            self._pool.publish(intake.table, chain, intake.written)
            counters, tokens = self._engine.counters, blocks * BLOCK_TOKENS
            counters.kv_imports += 1
            counters.kv_imported_tokens += tokens
            counters.kv_imported_bytes += tokens * row_bytes(self._pool, len(self._places))
        self._pool.release(intake.table)

    def _seconds(self, tokens: int) -> float:
        """That steps which carry nothing else would take for so many tokens of a prompt."""
        limits = self._engine.limits
        rows = min(tokens, limits.prefill_chunk if limits.canonical else limits.most_rows)
        return tokens / rows * self._engine.speculation.step_seconds(rows)
