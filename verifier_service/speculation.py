"""Drafts, as the verifier's engine sees them: who makes them, how many it takes, how long it waits.

All of it on the engine's thread. Whatever is decided here changes speed only, never a token.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from slipstream.core.draft import Close, Command, Proposal, Refusal, SetPace, SetWindow
from slipstream.core.goodput import share_rows
from slipstream.engine.exactness import MAX_STRICT_ROWS
from verifier_service.estimates import Acceptance
from verifier_service.generation import Generation
from verifier_service.guesses import Ngram, candidates
from verifier_service.layouts import Drafter, Layout
from verifier_service.lengths import Lengths
from verifier_service.measured import Measured
from verifier_service.placement import Cycle, Placement
from verifier_service.plan import Turn, Work
from verifier_service.policy import Target
from verifier_service.probes import Probes
from verifier_service.telemetry import Telemetry

log = logging.getLogger(__name__)
Send = Callable[[int, list[Command]], None]
# A probe waits for at most this share of a step.
_PROBE_PATIENCE = 0.5
# A wait ends when drafts are this much later than expected.
_PATIENCE, _PATIENCE_SECONDS = 2.0, 0.002
# Committed tokens of a sequence without a window that are told together.
_MOST_UNTOLD = 16


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """How drafts are used.

    Attributes:
        window: how far beyond the last commit a drafter may run; None: what suits the layout.
        length: None: as many drafts as promise the most tokens per second. A number: at most so
            many, whatever there is, and no waiting.
        ngram: whether n-gram guesses are verified, too; auto: where that pays.
        rows: most rows of a step for decoding and verification.
    """

    window: int | None = None
    length: int | None = None
    ngram: Ngram = "auto"
    rows: int = MAX_STRICT_ROWS


class Speculation:
    """Keeps the drafter informed, and decides what of its work goes into a step.

    Args:
        send: takes a drafter connection's number and its commands, in order.
        probe: seconds of a quiet step by rows, measured when the model was loaded.
        clock: seconds; the same clock stamps what arrives.

    Attributes:
        telemetry: of all that the engine does.
    """

    def __init__(
        self,
        send: Send,
        settings: SpeculationSettings,
        probe: dict[int, float],
        placement: Placement,
        clock: Callable[[], float] = time.perf_counter,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.acceptance = Acceptance()
        self.telemetry = telemetry or Telemetry()
        self._send = send
        self._settings = settings
        self._clock = clock
        self.placement = placement
        self._measured = Measured(probe, placement.layout, clock)
        self._lengths = Lengths(self._measured, settings.window, settings.rows)
        self._connection: int | None = None
        self._commands: list[Command] = []
        # What the drafter was told last.
        self._pace = SetPace((), burst=False)
        self._waiting_since: float | None = None

    @property
    def target(self) -> Target:
        """The lengths that were chosen last."""
        return self._lengths.target

    # ---- the drafter -----------------------------------------------------------------------

    def connect(self, connection: int, drafter: Drafter, running: Iterable[Generation]) -> None:
        """A drafter is there: live sequences are opened on it."""
        self._connection = connection
        self._commands.clear()
        self._pace = SetPace((), burst=False)
        self._adopt(self.placement.pair(drafter))
        for generation in running:
            self.open(generation)

    def disconnect(self, connection: int, running: Iterable[Generation]) -> None:
        """A drafter is gone: what it had is pending still, more will not come."""
        if connection != self._connection:
            return
        self._connection = None
        self._commands.clear()
        self._adopt(self.placement.pair(None))
        for generation in running:
            generation.opened = False

    def open(self, generation: Generation) -> None:
        generation.acceptance = Acceptance(self.acceptance)
        if self._connection is None or not generation.request.speculative:
            return
        if not self.placement.layout.drafts:
            generation.offers.later()
            return
        generation.opened, generation.paused = True, False
        generation.warm = generation.warm_before = generation.late = False
        generation.cold_steps, generation.probes, generation.untold = 0, Probes(), 0
        generation.probing = False
        # On a shared device the prompt is not prefilled twice at a time: the drafter's turn
        # comes when the verifier has decoded its first token.
        waits = self.placement.layout.burst and self._settings.length is None
        wanted = 0 if waits else self._lengths.ahead
        generation.window = wanted
        self._commands.append(generation.open_command(wanted))

    def close(self, generation: Generation) -> None:
        if generation.opened:
            self._commands.append(Close(generation.number))

    def suspend(self, generation: Generation) -> None:
        """It gives its place back; with the next one it is opened again."""
        self.close(generation)
        generation.opened = False

    def committed(self, generation: Generation, count: int) -> None:
        if not generation.opened:
            return
        generation.paused = False
        generation.untold += count
        # Nobody drafts without a window, and a message a step costs 2 to 3% of a small model's.
        if generation.window or generation.untold >= _MOST_UNTOLD:
            self._tell_commits(generation)

    def _tell_commits(self, generation: Generation) -> None:
        if generation.untold:
            self._commands.append(generation.commit_command(generation.untold))
            generation.untold = 0

    def flush(self) -> None:
        """Sends what was said since the last time, in one message."""
        if self._commands and self._connection is not None:
            self._send(self._connection, self._commands)
        self._commands = []

    def take(
        self,
        connection: int,
        proposals: Sequence[Proposal],
        refusals: Sequence[Refusal],
        generations: dict[int, Generation],
        vocab: int,
        at: float,
        draft_seconds: float,
    ) -> None:
        """Drafts arrived at the time `at`, from a drafter that takes `draft_seconds` for one."""
        if connection != self._connection:
            return
        self._measured.reported = draft_seconds
        for proposal in proposals:
            generation = generations.get(proposal.sequence_id)
            # A token id that does not exist would fail the forward pass of all that share it.
            known = all(0 <= token < vocab for token in proposal.tokens)
            if not known or generation is None or not generation.opened:
                continue
            generation.warm = True
            kept = generation.propose(proposal)
            self.telemetry.proposed(generation, proposal, kept=kept)
            if not kept:
                generation.agreed = False
                continue
            # A drafter that did not know of the last commit goes on when it hears of it.
            paused = proposal.paused and proposal.committed >= len(generation.sequence)
            generation.paused = paused
            generation.arrived_at = at
            if at > self._measured.step_ended:
                generation.arrived_waiting += len(proposal.tokens)
            else:
                generation.arrived_stepping += len(proposal.tokens)
                generation.stalled |= paused
        for refusal in refusals:
            generation = generations.get(refusal.sequence_id)
            if generation is not None:
                log.info("no drafts for %s: %s", generation.request.request_id, refusal.reason)
                generation.opened = False
                generation.offers.refused()

    def step_seconds(self, rows: int) -> float:
        """Of a step that decodes so many rows, by what is known of all row counts together."""
        return self._measured.cost(self._measured.beside).whole(rows)

    def waited(self) -> float:
        """Seconds for which those that decode have waited for the step that begins now."""
        return self._clock() - self._measured.step_ended

    # ---- before a step ---------------------------------------------------------------------

    def patience(self, turn: Turn) -> float:
        """Seconds to wait for drafts before the next step; 0 to go ahead."""
        if turn.prompts and not turn.decoding:
            self._adopt(self.placement.for_prompts())
        drafting = [g for g in turn.decoding if g.opened]
        if not drafting or self._settings.length is not None:
            return 0.0
        if self._waiting_since is None:
            self._waiting_since = self._measured.step_ended
            self._measured.learn_stepping(drafting)
            if self._lengths.choose(len(turn.decoding), drafting):
                self._set_windows(drafting)
        # Prompts wait for nobody's drafts, but where those would be made on the cores that compute
        # the prompts.
        if turn.prompts and not self.placement.layout.burst:
            return 0.0
        missing = [g for g in drafting if g.window and not g.paused and g.lacks_drafts]
        cold = self._cold(missing)
        if cold:
            return self._cold_patience(cold)
        missing = [g for g in missing if g.warm]
        if not missing or self._worth_it_now(turn.decoding):
            return 0.0
        expected = self._measured.wait(
            max(g.arrived_waiting + g.wanted - g.num_pending for g in missing)
        )
        most = _PATIENCE * expected + _PATIENCE_SECONDS
        if all(g.probing for g in missing):
            most = min(most, _PROBE_PATIENCE * self._measured.cost(beside=False)(1))
        left = self._left(most)
        self._measured.waited |= left > 0.0
        return left

    def _left(self, most: float) -> float:
        """Seconds until a wait of at most `most` is over."""
        assert self._waiting_since is not None, "nobody waits"
        return max(0.0, self._waiting_since + most - self._clock())

    def _cold(self, missing: Sequence[Generation]) -> list[Generation]:
        """Those whose first drafts must be waited for, and still may be.

        Side by side a drafter gets its context while the verifier goes on. Where the two take turns
        it would do so on the verifier's cores, and each would hold up the other's threads: a step
        took ten times as long.
        """
        turns = self.placement.layout.burst
        return [g for g in missing if not g.warm] if turns else []

    def _cold_patience(self, cold: Sequence[Generation]) -> float:
        """Seconds to wait for first drafts. Once they are over, nobody asks for drafts again."""
        left = self._left(max(self._lengths.cold_patience(g) for g in cold))
        if not left:
            for generation in cold:
                generation.late, generation.wanted = True, 0
            self._set_windows(cold)
        return left

    def share(
        self, decoding: Sequence[Generation], most_rows: int, most: int
    ) -> list[tuple[int, ...]]:
        """The drafts of each decoding sequence in the step that starts now."""
        self._measured.begin(decoding)
        length = self._settings.length
        each = max(0, most_rows - len(decoding)) // max(1, len(decoding))
        most = most if length is None else min(most, each, length)
        runs = [candidates(g, most, self._settings.ngram) for g in decoding]
        if length is None:
            counts = share_rows(
                [r.chances for r in runs], self._measured.cost(self._measured.beside), most_rows
            )
        else:
            counts = [len(run.tokens) for run in runs]
        for generation, run, count in zip(decoding, runs, counts, strict=True):
            generation.drafted = min(run.drafted, count)
        return [run.tokens[:count] for run, count in zip(runs, counts, strict=True)]

    # ---- after a step ----------------------------------------------------------------------

    def verified(self, generation: Generation) -> None:
        """A sequence has settled: its drafts agree with what was committed, up to some point."""
        if generation.compared:
            generation.acceptance.record(generation.compared, generation.agreed_drafts)
            self.acceptance.record(generation.compared, generation.agreed_drafts)

    def stepped(self, work: Sequence[Work], tokens: int) -> None:
        """A step is over that committed `tokens` tokens."""
        self._offer_again([item.generation for item in work])
        sequences = sum(item.decodes for item in work)
        prompts = len(work) - sequences
        rows = 0 if prompts else sum(item.rows for item in work)
        seconds = self._measured.end(rows)
        rate, drafts = self.target.rate, self.target.length > 0
        cycle = Cycle(sequences, tokens, seconds, rate, prompts, drafts)
        layout = self.placement.cycled(cycle)
        if layout is not self.placement.layout:
            self._adopt(layout)
        self._waiting_since = None

    def _offer_again(self, generations: Sequence[Generation]) -> None:
        if not self.placement.layout.drafts:
            return
        for generation in generations:
            has_place = generation.sequence.table is not None
            if generation.offers.due() and has_place and not generation.opened:
                self.open(generation)

    # ---- what was measured, and what follows from it ---------------------------------------

    def _worth_it_now(self, decoding: Sequence[Generation]) -> bool:
        """Whether a step with what is there, guesses included, promises what waiting would."""
        if self._measured.waited or self._settings.ngram == "off":
            # Guesses depend on what was committed alone, so once a step is enough.
            return False
        # The drafter is at work: whoever does not wait for it computes beside it.
        cost = self._measured.cost(beside=True)
        runs = [candidates(g, self._lengths.longest, self._settings.ngram) for g in decoding]
        counts = share_rows([run.chances for run in runs], cost, self._settings.rows)
        expected = sum(1.0 + sum(r.chances[:n]) for r, n in zip(runs, counts, strict=True))
        return expected / cost(len(decoding) + sum(counts)) >= self.target.rate

    def _set_windows(self, drafting: Sequence[Generation]) -> None:
        for generation in drafting:
            wanted = self._lengths.window(generation)
            if generation.window != wanted:
                self._tell_commits(generation)
                generation.window = wanted
                generation.paused = generation.paused and generation.num_pending >= wanted
                self._commands.append(SetWindow(generation.number, wanted))

    def _adopt(self, layout: Layout) -> None:
        """Computes where `layout` says from now on, and tells the drafter to do so."""
        self.placement.use(layout)
        self._measured.layout = layout
        pace = SetPace(layout.drafter_cores, layout.burst)
        if self._connection is not None and pace != self._pace:
            self._commands.append(pace)
        self._pace = pace
