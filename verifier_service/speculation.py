"""Drafts, as the verifier's engine sees them: who makes them, how many it takes, how long it waits.

All of it on the engine's thread. Whatever is decided here changes speed only, never a token.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from slipstream.core.draft import Close, Command, Proposal, Refusal, SetPace, SetWindow
from slipstream.core.goodput import share_rows
from slipstream.engine.exactness import MAX_STRICT_ROWS
from verifier_service.estimates import Acceptance, Arrival, StepCost, mean_survival
from verifier_service.generation import Generation
from verifier_service.guesses import Ngram, candidates
from verifier_service.placement import Drafter, Layout, Placement
from verifier_service.plan import Turn, Work
from verifier_service.policy import Target, best_length

log = logging.getLogger(__name__)
Send = Callable[[int, list[Command]], None]
# While drafts are not worth their while, they are tried again: after so many steps, twice as many
# after every failure, for so many steps, with so many drafts ahead.
_PROBE_AFTER, _PROBE_LEAST_OFTEN, _PROBE_STEPS, _PROBE_WINDOW = 32, 512, 4, 3
# The target is computed anew after so many steps.
_RETARGET_STEPS = 4
# A probe waits for at most this share of a step.
_PROBE_PATIENCE = 0.5
# First drafts come after the drafter has the context. Side by side nobody waits for them; taking
# turns, in so many steps. After so many steps, and one more for so many tokens of the prompt, their
# absence counts as a measurement.
_COLD_WAITS, _COLD_PATIENCE, _COLD_STEPS, _COLD_PROMPT = 3, 1.5, 16, 8
# Longest run that is considered where the drafter makes runs on demand.
_LONGEST_RUN = 12
# A wait ends when drafts are this much later than expected.
_PATIENCE, _PATIENCE_SECONDS = 2.0, 0.002


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """How drafts are used.

    Attributes:
        window: how far beyond the last commit a drafter may run.
        length: None: as many drafts as promise the most tokens per second. A number: at most so
            many, whatever there is, and no waiting.
        ngram: whether n-gram guesses are verified, too; auto: where that pays.
    """

    window: int = 8
    length: int | None = None
    ngram: Ngram = "auto"


class Speculation:
    """Keeps the drafter informed, and decides what of its work goes into a step.

    Args:
        send: takes a drafter connection's number and its commands, in order.
        probe: seconds of a quiet step by rows, measured when the model was loaded.
        clock: seconds; the same clock stamps what arrives.
    """

    def __init__(
        self,
        send: Send,
        settings: SpeculationSettings,
        probe: dict[int, float],
        placement: Placement,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.acceptance = Acceptance()
        self.arrival = Arrival()
        self.target = Target()
        self._send = send
        self._settings = settings
        self._longest = max(settings.window, _LONGEST_RUN)
        self._probe = probe
        self._clock = clock
        self.placement = placement
        self._costs: dict[tuple[Layout, bool], StepCost] = {}
        self._arrivals: dict[Layout, Arrival] = {}
        self._connection: int | None = None
        self._commands: list[Command] = []
        # What the drafter was told last.
        self._pace = SetPace((), burst=False)
        self._beside = False
        self._step_started = self._step_ended = clock()
        self._waiting_since: float | None = None
        self._waited = self._decoded = False
        self._reported = 0.0
        self._steps_on = self._steps_off = 0
        self._company = (0, 0)
        self._probe_after = _PROBE_AFTER

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
        generation.opened, generation.paused = True, False
        generation.warm, generation.cold_steps = False, 0
        # On a shared device the prompt is not prefilled twice at a time: the drafter's turn
        # comes when the verifier has decoded its first token.
        wanted = self._wanted_window()
        if self.placement.layout.burst and self._settings.length is None:
            wanted = 0
        generation.window = wanted
        self._commands.append(generation.open_command(wanted))

    def close(self, generation: Generation) -> None:
        if generation.opened:
            self._commands.append(Close(generation.number))

    def committed(self, generation: Generation, count: int) -> None:
        if generation.opened:
            generation.paused = False
            self._commands.append(generation.commit_command(count))

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
        self._reported = draft_seconds
        for proposal in proposals:
            generation = generations.get(proposal.sequence_id)
            # A token id that does not exist would fail the forward pass of all that share it.
            known = all(0 <= token < vocab for token in proposal.tokens)
            if not known or generation is None or not generation.opened:
                continue
            generation.warm = True
            if not generation.propose(proposal):
                generation.agreed = False
                continue
            # A drafter that did not know of the last commit goes on when it hears of it.
            paused = proposal.paused and proposal.committed >= len(generation.sequence)
            generation.paused = paused
            generation.arrived_at = at
            if at > self._step_ended:
                generation.arrived_waiting += len(proposal.tokens)
            else:
                generation.arrived_stepping += len(proposal.tokens)
                generation.stalled |= paused
        for refusal in refusals:
            generation = generations.get(refusal.sequence_id)
            if generation is not None:
                log.info("no drafts for %s: %s", generation.request.request_id, refusal.reason)
                generation.opened = False

    # ---- before a step ---------------------------------------------------------------------

    def patience(self, turn: Turn) -> float:
        """Seconds to wait for drafts before the next step; 0 to go ahead."""
        drafting = [g for g in turn.decoding if g.opened]
        if turn.prompt or not drafting or self._settings.length is not None:
            return 0.0
        if self._waiting_since is None:
            self._waiting_since = self._step_ended
            self._learn_stepping(drafting)
            # The estimates move slowly, and in Python this takes as long as a small kernel.
            self._steps_on += 1
            company = (len(turn.decoding), len(drafting))
            if company != self._company or not self._steps_on % _RETARGET_STEPS or self._steps_off:
                self._company = company
                self._retarget(turn.decoding, drafting)
        length = self.target.length
        missing = [
            g for g in drafting if not g.paused and g.window and g.num_pending < min(length, g.room)
        ]
        # Nobody knows when the first drafts of a sequence come: after its context.
        missing = [g for g in missing if g.warm] or [g for g in missing if self._cold_wait(g)]
        if not missing or self._worth_it_now(turn.decoding):
            return 0.0
        expected = self.arrival.wait(
            max(g.arrived_waiting + length - g.num_pending for g in drafting)
        )
        most = _PATIENCE * expected + _PATIENCE_SECONDS
        if self._probing or not missing[0].warm:
            steps = _PROBE_PATIENCE if missing[0].warm else _COLD_PATIENCE
            most = min(most, steps * self._cost(beside=False)(1))
        deadline = self._waiting_since + most
        left = max(0.0, deadline - self._clock())
        self._waited = self._waited or left > 0.0
        return left

    def share(
        self, decoding: Sequence[Generation], most_rows: int, most: int
    ) -> list[tuple[int, ...]]:
        """The drafts of each decoding sequence in the step that starts now."""
        self._learn_waiting([g for g in decoding if g.opened])
        self._step_started = self._clock()
        self._beside = any(g.opened and g.window and not g.paused for g in decoding)
        length = self._settings.length
        each = max(0, most_rows - len(decoding)) // max(1, len(decoding))
        most = most if length is None else min(most, each, length)
        runs = [candidates(g, most, self._settings.ngram) for g in decoding]
        if length is None:
            counts = share_rows([r.chances for r in runs], self._cost(self._beside), most_rows)
        else:
            counts = [len(run.tokens) for run in runs]
        for generation, run, count in zip(decoding, runs, counts, strict=True):
            generation.drafted = min(run.drafted, count)
        return [run.tokens[:count] for run, count in zip(runs, counts, strict=True)]

    # ---- after a step ----------------------------------------------------------------------

    def verified(self, generation: Generation, accepted: int) -> None:
        """Of the drafts that a sequence had in the step the first `accepted` were right."""
        drafted, accepted = generation.drafted, min(generation.drafted, accepted)
        if drafted:
            generation.acceptance.record(drafted, accepted)
            self.acceptance.record(drafted, accepted)

    def stepped(self, work: Sequence[Work], tokens: int) -> None:
        """A step is over that committed `tokens` tokens."""
        ended = self._clock()
        self._decoded = all(item.decodes for item in work)
        if self._decoded:
            rows = sum(len(item.segment.tokens) for item in work)
            self._cost(self._beside).observe(rows, ended - self._step_started)
            layout = self.placement.cycled(len(work), tokens, ended - self._step_ended)
            if layout is not self.placement.layout:
                self._adopt(layout)
        self._step_ended = ended
        self._waiting_since = None

    # ---- what was measured, and what follows from it ---------------------------------------

    def _cost(self, beside: bool) -> StepCost:
        key = (self.placement.layout, beside)
        if key not in self._costs:
            # Two that compute on the same cores at a time get half of them each, or less.
            slower = 2.0 if beside and self.placement.layout.burst else 1.0
            self._costs[key] = StepCost({n: slower * t for n, t in self._probe.items()})
        return self._costs[key]

    def _cold_wait(self, generation: Generation) -> bool:
        """Whether to wait, a little, for the first drafts of a sequence: where the two take turns
        the drafter would get nowhere without."""
        return self.placement.layout.burst and generation.cold_steps < _COLD_WAITS

    def _count_cold(self, generation: Generation) -> None:
        """Another step without a first draft; at some point that says how slow the drafter is."""
        generation.cold_steps += 1
        limit = _COLD_STEPS + generation.sequence.num_prompt // _COLD_PROMPT
        if generation.cold_steps % limit == 0:
            self.arrival.waited(limit * self._cost(self._beside)(1), 0.0)

    def _worth_it_now(self, decoding: Sequence[Generation]) -> bool:
        """Whether a step with what is there, guesses included, promises what waiting would."""
        if self._waited or self._settings.ngram == "off":
            # Guesses depend on what was committed alone, so once a step is enough.
            return False
        # The drafter is at work: whoever does not wait for it computes beside it.
        cost = self._cost(beside=True)
        runs = [candidates(g, self._longest, self._settings.ngram) for g in decoding]
        counts = share_rows([run.chances for run in runs], cost, MAX_STRICT_ROWS)
        expected = sum(1.0 + sum(r.chances[:n]) for r, n in zip(runs, counts, strict=True))
        return expected / cost(len(decoding) + sum(counts)) >= self.target.rate

    def _learn_stepping(self, drafting: Sequence[Generation]) -> None:
        # Of a drafter that was contradicted nobody knows how much it made, and one that had no
        # room from the start made nothing.
        active = [g for g in drafting if g.window and g.agreed and g.warm]
        if not active or not self._decoded or not self._beside or self.placement.layout.burst:
            return
        came = sum(g.arrived_stepping for g in active) / len(active)
        if came:
            last = max(g.arrived_at for g in active if g.arrived_stepping)
            self.arrival.stepped(last - self._step_started, came)
        elif not any(g.stalled for g in active):
            self.arrival.stepped(self._step_ended - self._step_started, 0.0)

    def _learn_waiting(self, drafting: Sequence[Generation]) -> None:
        waited = [g for g in drafting if g.arrived_waiting]
        if waited and self._decoded:
            seconds = max(g.arrived_at for g in waited) - self._step_ended
            came = sum(g.arrived_waiting for g in waited) / len(waited)
            self.arrival.waited(seconds, came)
        elif self._waited and any(g.warm for g in drafting):
            self.arrival.waited(self._clock() - self._step_ended, 0.0)
        self._waited = False
        for g in drafting:
            if g.window and not g.warm:
                self._count_cold(g)
            g.arrived_waiting = g.arrived_stepping = 0
            g.stalled = g.paused

    def _retarget(self, decoding: Sequence[Generation], drafting: Sequence[Generation]) -> None:
        burst = self.placement.layout.burst
        # Before it has drafted anything, half a step is a guess as good as any.
        self.arrival.said(self._reported or 0.5 * self._probe[min(self._probe)])
        best = best_length(
            quiet=self._cost(beside=False),
            beside=self._cost(beside=not burst),
            survival=mean_survival([g.acceptance.survival(self._longest) for g in drafting]),
            waiting=self.arrival.wait,
            stepping=0.0 if burst else self.arrival.stepping,
            sequences=len(decoding),
            drafting=len(drafting),
        )
        self._count_off(best)
        if self._steps_off == self._probe_after:
            if self._reported:
                self.arrival.forget()
            for generation in drafting:
                generation.acceptance.forget()
        # Taking turns, a probe has to wait for its draft; side by side it need not.
        self.target = replace(best, length=1) if burst and self._probing else best
        wanted = self._wanted_window()
        for generation in drafting:
            if generation.window != wanted:
                generation.window = wanted
                generation.paused = generation.paused and generation.num_pending >= wanted
                self._commands.append(SetWindow(generation.number, wanted))

    @property
    def _probing(self) -> bool:
        return self._steps_off >= self._probe_after

    def _count_off(self, best: Target) -> None:
        """Counts the steps without drafts, and the probes that found that right."""
        if best.length:
            self._steps_off, self._probe_after = 0, _PROBE_AFTER
            return
        self._steps_off += 1
        if self._steps_off >= self._probe_after + _PROBE_STEPS:
            self._steps_off = 0
            self._probe_after = min(2 * self._probe_after, _PROBE_LEAST_OFTEN)

    def _wanted_window(self) -> int:
        if self._settings.length is not None:
            return self._settings.window
        if self.target.length == 0 and self.target.rate:
            return _PROBE_WINDOW if self._probing else 0
        if self.placement.layout.burst:
            return max(1, self.target.length)
        return self._settings.window

    def _adopt(self, layout: Layout) -> None:
        """Computes where `layout` says from now on, and tells the drafter to do so."""
        self.placement.use(layout)
        self.arrival = self._arrivals.setdefault(layout, Arrival())
        pace = SetPace(layout.drafter_cores, layout.burst)
        if self._connection is not None and pace != self._pace:
            self._commands.append(pace)
        self._pace = pace
