"""A layer plan that is looked for while serving: other skip sets are tried on spare time.

After SWIFT (Xia et al., arXiv 2410.06916): a candidate is judged by how far it would have drafted
what the verifier then committed, in parallel passes over the last tokens, and replaces the current
set where the two together, agreement and cost, promise more tokens per second. Nothing that is
tried or chosen can change a token; it changes how many drafts are right.

Every attention layer keeps keys and values of all committed positions, whatever is skipped: prompts
are computed by the unskipped copy (see AdaptiveStage), and so are committed tokens, again, on spare
time. A set can thus be tried, and moved to, at any moment. It also makes for a better context than
the skipping copy's own (docs/drafting.md).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from drafter_service.draft import Draft, Part, Work
from drafter_service.stage import Done, Drawn, LocalStage
from drafter_service.trials import RUN, Candidates, Trial
from slipstream.core.draft import Commit
from slipstream.core.layer_plan import Skips
from slipstream.core.throughput import RunTally
from slipstream.engine.batch import Segment
from slipstream.engine.draws import Draws
from slipstream.engine.kv_pool import BLOCK_TOKENS, KvPool
from slipstream.engine.runner import ModelRunner
from slipstream.engine.sequence import Sequence as Tokens
from slipstream.engine.step_cost import StepCost

log = logging.getLogger(__name__)

# Committed tokens that a candidate is judged on lie at most so far back.
_RECENT = 50
# Spare passes take at most this share of the time: they use memory that the verifier may share.
_SHARE = 0.25
# Commits whose distance in time tells the verifier's step, at least and at most.
_FEWEST_GAPS, _MOST_GAPS = 8, 64


def is_context(work: Work) -> bool:
    """Whether a sequence's rows only build its context, beyond what a run of drafts can be."""
    return len(work.segment.tokens) > work.draft.window + 1 + len(work.guesses)


class AdaptiveStage(LocalStage):
    """The model in this process; what only builds context is computed with nothing skipped."""

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__(runner)
        self._skips = runner.loaded.skips

    def submit(self, work: Sequence[Work], done: Done) -> None:
        drafting = [item for item in work if not is_context(item)]
        context = [item for item in work if is_context(item)]
        drawn: dict[int, Drawn] = {}

        def keep(items: Sequence[Work], results: Sequence[Drawn]) -> None:
            drawn.update((id(item), result) for item, result in zip(items, results, strict=True))

        if drafting:
            super().submit(drafting, keep)
        if context:
            with self._skips.using(Skips()):
                super().submit(context, keep)
        done(work, [drawn[id(item)] for item in work])


@dataclass(slots=True)
class AdaptiveCounters:
    """Totals since the start. Written by the engine's thread, read by anyone."""

    trials: int = 0
    moves: int = 0
    spare_seconds: float = 0.0


@dataclass(slots=True)
class _Known:
    """What is known of one sequence.

    Attributes:
        filled: positions whose keys and values are there in every layer; None before any pass.
        heard: when the last commit came, on the monotonic clock.
    """

    filled: int | None = None
    heard: float = 0.0


class Adaptive(Part):
    """Tries skip sets and moves to better ones.

    Args:
        cost: of a step of one row under any set.
        start: the first set.
        taken: how much of a sequence has the verifier's own keys and values, which are not to be
            computed over; None where no more of them come.
    """

    # They depend on what was skipped when, and are computed again.
    shareable = False

    def __init__(
        self,
        runner: ModelRunner,
        cost: StepCost,
        *,
        start: Skips = Skips(),  # noqa: B008 immutable
        taken: Callable[[Draft], int | None] = lambda _: None,
        seed: int = 0,
    ) -> None:
        self.counters = AdaptiveCounters()
        self._runner, self._cost, self._taken = runner, cost, taken
        self._skips = runner.loaded.skips
        self._known: dict[Draft, _Known] = {}
        self._gaps: deque[float] = deque(maxlen=_MOST_GAPS)
        self._candidates = Candidates(cost.layers, seed)
        self._trial: Trial | None = None
        self._rest_until = 0.0
        self._skips.use(start)

    # ---- what happens to sequences ---------------------------------------------------------

    def opened(self, draft: Draft) -> None:
        self._known[draft] = _Known()

    def closed(self, draft: Draft) -> None:
        del self._known[draft]
        if self._trial is not None:
            self._trial.judged.pop(draft, None)
            if self._trial.pending is not None and self._trial.pending[0] is draft:
                self._trial.pending = None

    def committed(self, draft: Draft, command: Commit, lost: int) -> None:  # noqa: ARG002
        known, now = self._known[draft], time.monotonic()
        # Without a window many steps' commits are told together.
        if known.heard and draft.window:
            self._gaps.append(now - known.heard)
        known.heard = now

    def passed(self, work: Sequence[Work], drawn: Sequence[Drawn], seconds: float) -> None:  # noqa: ARG002
        for item in work:
            known = self._known.get(item.draft)
            if known is None:
                continue
            if known.filled is None:
                # What a sequence begins behind came from the verifier, in every layer.
                known.filled = item.segment.position
            if is_context(item) and known.filled >= item.segment.position:
                known.filled = max(known.filled, item.segment.kv_length)

    # ---- spare time ------------------------------------------------------------------------

    def idle(self) -> bool:
        """One short pass: what is missing of a context first, then a run of a trial."""
        started = time.monotonic()
        if not self._fill():
            if started < self._rest_until or not self._try():
                return False
            self._rest_until = started + (time.monotonic() - started) / _SHARE
        self.counters.spare_seconds += time.monotonic() - started
        return True

    def _fill(self) -> bool:
        """Computes some committed positions again, with nothing skipped."""
        for draft, known in self._known.items():
            there = min(draft.committed, draft.sequence.computed)
            if known.filled is None or draft.loading or known.filled >= there:
                continue
            taken = self._taken(draft) if self._skips.current else there
            if taken is not None:
                known.filled = max(known.filled, min(there, taken))
                continue
            start, end = known.filled, min(known.filled + RUN, there)
            self._pass(draft.sequence, start, end, Skips(), keep_from=end)
            known.filled = end
            return True
        return False

    def _pass(
        self, sequence: Tokens, start: int, end: int, skips: Skips, *, keep_from: int
    ) -> torch.Tensor:
        """Logits of the rows from `start` to `end`; keys and values from `keep_from` on stay."""
        pool, table = self._runner.pool, sequence.table
        assert table is not None
        # A pass that enters a block clears all of it (KvPool.enter).
        kept = pool.copy_rows(table, keep_from, KvPool.blocks_for(end) * BLOCK_TOKENS)
        try:
            with self._skips.using(skips):
                rows = Segment(sequence.tokens[start:end], start, table, end - start)
                return self._runner.forward([rows])
        finally:
            pool.put_rows(table, keep_from, kept)

    def _try(self) -> bool:
        """One run of the candidate or, on the same tokens, of the current set."""
        if len(self._gaps) < _FEWEST_GAPS:
            return False
        trial = self._trial
        if trial is None:
            trial = self._trial = Trial(self._candidates.suggest(self._skips.current))
            self.counters.trials += 1
        if trial.pending is not None:
            trial.ours += self._run(*trial.pending, trial.candidate)
            trial.pending = None
            self._judge(trial)
            return True
        found = self._next_run(trial)
        if found is None:
            return False
        trial.theirs += self._run(*found, self._skips.current)
        trial.pending = found
        return True

    def _next_run(self, trial: Trial) -> tuple[Draft, int] | None:
        """A run of committed tokens that this trial has not used."""
        for draft, known in self._known.items():
            if known.filled is None or draft.loading:
                continue
            end = min(known.filled, draft.committed)
            first = max(1, draft.sequence.num_prompt, end - _RECENT, trial.judged.get(draft, 0))
            if first + RUN <= end:
                trial.judged[draft] = first + RUN
                return draft, first
        return None

    def _run(self, draft: Draft, first: int, skips: Skips) -> RunTally:
        """How far a set would have drafted the tokens from `first` on. Leaves no trace."""
        source, end = draft.sequence, first + RUN
        logits = self._pass(source, first - 1, end - 1, skips, keep_from=first - 1)
        before = Tokens(source.tokens[:first], source.num_prompt, source.params, "")
        decided = source.tokens[first:end]
        drawn = Draws(logits).run(0, before, decided[:-1])
        right = len(drawn) - 1 + (drawn[-1] == decided[len(drawn) - 1])
        return RunTally.of_run(right, RUN)

    # ---- which set -------------------------------------------------------------------------

    def _judge(self, trial: Trial) -> None:
        """Ends the trial where it is clear enough."""
        better = trial.verdict(self._skips.current, self._cost, median(self._gaps))
        if better is None:
            return
        self._trial = None
        if better:
            self._move(trial.candidate)
        else:
            self._candidates.drop(trial.candidate)

    def _move(self, skips: Skips) -> None:
        """From the next pass on. Drafts stay; those that were not committed are computed again,
        since layers that come back have no keys and values of them."""
        self._skips.use(skips)
        log.info("layer plan: %s", self._runner.loaded.running_plan.describe())
        self.counters.moves += 1
        for draft, known in self._known.items():
            draft.sequence.computed = min(draft.sequence.computed, known.filled or 0)
