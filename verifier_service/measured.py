"""What service has shown of step times and of the drafter's speed, for each layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from verifier_service.estimates import Arrival, StepCost
from verifier_service.generation import Generation
from verifier_service.layouts import Layout

# After so many steps, and one more for so many tokens of the prompt, the absence of first drafts
# counts as a measurement.
_COLD_STEPS, _COLD_PROMPT = 16, 8


class Measured:
    """Watches steps and the drafts that come between and beside them. One owner.

    Args:
        probe: seconds of a quiet step by rows.

    Attributes:
        layout: where both compute; each has estimates of its own.
        reported: seconds of a draft as the drafter says; 0 where it has not.
        step_started, step_ended: times of the last step.
        beside: whether the drafter was at work when it began.
        waited: whether anybody waited for drafts since it ended.
    """

    def __init__(self, probe: dict[int, float], layout: Layout, clock: Callable[[], float]) -> None:
        self.layout = layout
        self.reported = 0.0
        self.step_started = self.step_ended = clock()
        self.beside = self.waited = False
        self._clock = clock
        self._probe = probe
        self._decoded = False
        self._costs: dict[tuple[Layout, bool], StepCost] = {}
        self._arrivals: dict[Layout, Arrival] = {}

    @property
    def arrival(self) -> Arrival:
        return self._arrivals.setdefault(self.layout, Arrival())

    def cost(self, beside: bool) -> StepCost:
        """Of steps with the drafter at work, or silent."""
        key = (self.layout, beside)
        if key not in self._costs:
            # Two that compute on the same cores at a time get half of them each, or less.
            slower = 2.0 if beside and self.layout.burst else 1.0
            self._costs[key] = StepCost({n: slower * t for n, t in self._probe.items()})
        return self._costs[key]

    def wait(self, drafts: float) -> float:
        """Seconds to expect until so many more drafts are there."""
        # Before it has drafted anything, half a step is a guess as good as any.
        self.arrival.said(self.reported or 0.5 * self._probe[min(self._probe)])
        return self.arrival.wait(drafts)

    def begin(self, decoding: Sequence[Generation]) -> None:
        """A step begins, and with it the wait for its drafts is over."""
        self._learn_waiting([g for g in decoding if g.opened])
        self.step_started = self._clock()
        self.beside = any(g.opened and g.window and not g.paused for g in decoding)

    def end(self, rows: int) -> float:
        """A step is over, of `rows` rows; 0 where it did not only decode.

        Returns:
            Seconds since the one before it was.
        """
        ended, before = self._clock(), self.step_ended
        self._decoded = rows > 0
        if rows:
            self.cost(self.beside).observe(rows, ended - self.step_started)
        self.step_ended = ended
        return ended - before

    def learn_stepping(self, drafting: Sequence[Generation]) -> None:
        """Learns from what came during the last step."""
        # Of a drafter that was contradicted nobody knows how much it made, and one that had no
        # room from the start made nothing.
        active = [g for g in drafting if g.window and g.agreed and g.warm]
        if not active or not self._decoded or not self.beside or self.layout.burst:
            return
        came = sum(g.arrived_stepping for g in active) / len(active)
        if came:
            last = max(g.arrived_at for g in active if g.arrived_stepping)
            self.arrival.stepped(last - self.step_started, came)
        elif not any(g.stalled for g in active):
            self.arrival.stepped(self.step_ended - self.step_started, 0.0)

    def _learn_waiting(self, drafting: Sequence[Generation]) -> None:
        # First drafts come with the context, and say nothing of those that follow.
        waited = [g for g in drafting if g.arrived_waiting and g.warm_before]
        if waited and self._decoded:
            seconds = max(g.arrived_at for g in waited) - self.step_ended
            came = sum(g.arrived_waiting for g in waited) / len(waited)
            self.arrival.waited(seconds, came)
        elif self.waited and any(g.warm_before for g in drafting):
            self.arrival.waited(self._clock() - self.step_ended, 0.0)
        self.waited = False
        for g in drafting:
            if g.window and not g.warm:
                self._count_cold(g)
            g.arrived_waiting = g.arrived_stepping = 0
            g.warm_before = g.warm
            g.stalled = g.paused

    def _count_cold(self, generation: Generation) -> None:
        """Another step without a first draft; at some point that says how slow the drafter is."""
        generation.cold_steps += 1
        limit = _COLD_STEPS + generation.sequence.num_prompt // _COLD_PROMPT
        if generation.cold_steps % limit == 0:
            self.arrival.waited(limit * self.cost(self.beside)(1), 0.0)
