"""A drafter slowed down on purpose drafts the same, later."""

from __future__ import annotations

import time

from drafter_service.engine import DrafterEngine
from drafter_service.slow_stage import SlowStage
from drafter_service.stage import LocalStage
from slipstream.core.params import SamplingParams
from tests.drafter.rig import DrafterRig, opening

PROMPT = tuple(range(10, 30))


class _Timed(LocalStage):
    """Counts the seconds of its passes."""

    seconds = 0.0

    def submit(self, work, done):
        drawn = []
        started = time.perf_counter()
        super().submit(work, lambda *result: drawn.append(result))
        self.seconds += time.perf_counter() - started
        done(*drawn[0])


def test_passes_take_their_factor_and_give_the_same(runner) -> None:
    """The same drafts in about ten times the time, and the drafter says so of itself."""
    fast = DrafterRig(runner)
    fast.obey(opening(PROMPT, SamplingParams(seed=3)))
    fast.run()
    wanted = fast.ahead()
    fast.close_all()

    slow, inner = DrafterRig(runner), _Timed(runner)
    slow.engine = DrafterEngine(
        runner, lambda *message: slow.sent.append(message), stage=SlowStage(inner, 10.0)
    )
    slow.obey(opening(PROMPT, SamplingParams(seed=3)))
    started = time.perf_counter()
    slow.run()
    elapsed = time.perf_counter() - started
    assert slow.ahead() == wanted
    assert elapsed > 9.5 * inner.seconds
    assert slow.engine.counters.step_seconds > 9.5 * inner.seconds
    slow.close_all()
