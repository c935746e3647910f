"""What telemetry costs a step."""

from __future__ import annotations

import time
from types import SimpleNamespace

from slipstream.core.draft import Proposal
from slipstream.core.prefix import PrefixChain
from slipstream.engine.batch import Segment
from verifier_service.plan import Work
from verifier_service.telemetry import Telemetry
from verifier_service.times import Times

SEQUENCES, DRAFTS, STEPS = 4, 3, 2000


def test_a_step_pays_microseconds():
    """Telling of a step of four sequences, each with drafts that came and were decided: under 20 us
    in the median, which what else runs on the machine hardly lifts."""
    telemetry = Telemetry()
    chain = PrefixChain("s", list(range(20)))
    request = SimpleNamespace(times=Times(started=1.0, first=1.0, last=1.0))
    sequence = type("Sequence", (), {"chain": chain, "__len__": lambda _: 20})()
    generation = SimpleNamespace(request=request, drafted=DRAFTS, agreed=False, sequence=sequence)
    segment = Segment((1,) * (1 + DRAFTS), 20, None, 1 + DRAFTS)  # type: ignore[arg-type]
    work = [Work(generation, segment, (1,) * DRAFTS)] * SEQUENCES  # type: ignore[arg-type]
    proposal = Proposal(1, chain.at(19), (1,), paused=False, committed=19)
    costs = []
    for step in range(STEPS):
        began = time.perf_counter()
        telemetry.overlap.heard(began, float(step))
        for _ in range(SEQUENCES):
            telemetry.proposed(generation, proposal, kept=False)  # type: ignore[arg-type]
            telemetry.decided(generation, DRAFTS, 2, 1)  # type: ignore[arg-type]
        telemetry.stepped(work, began - 0.02, began)
        costs.append(time.perf_counter() - began)
    cost = sorted(costs)[STEPS // 2]
    print(f"\n{1e6 * cost:.1f} us a step of {SEQUENCES} sequences")  # noqa: T201
    assert cost < 20e-6
    assert telemetry.rows.count == STEPS
