"""What the verifier tells of itself: GetStatus, and the counters behind /metrics."""

from __future__ import annotations

import asyncio

from gateway.metrics import Metrics
from slipstream.core.params import SamplingParams
from slipstream.wire.mailbox import Mailbox
from slipstream.wire.proto import verifier_pb2
from tests.telemetry.scraped import values_of
from tests.verifier.rig import HERE, Rig
from verifier_service.servicer import Identity, VerifierServicer, _stats

REPEATING = SamplingParams(temperature=0.0, logit_bias={3: 100.0})


async def _status(rig: Rig) -> verifier_pb2.GetStatusResponse:
    identity = Identity("tiny", "native", "strict", True)
    mailbox = Mailbox(asyncio.get_running_loop())
    servicer = VerifierServicer(rig.engine, identity, None, mailbox)
    return await servicer.GetStatus(verifier_pb2.GetStatusRequest(), None)


async def test_guesses_are_told_apart_from_drafts(runner) -> None:
    """Without a drafter all drafts are guesses: in GetStatus, and in the gateway's metrics."""
    rig = Rig(runner, ngram="on", placement="auto")
    outcome = rig.submit([1, 2, 3, 3, 3, 3], REPEATING, max_tokens=40, ignore_eos=True)
    rig.finish()
    status = await _status(rig)
    assert status.placement == "alone"
    assert not status.placement_on_trial
    assert (status.draft_length, status.draft_worth) == (0, 1.0)
    assert status.guess_tokens == status.draft_tokens > 0
    assert status.accepted_guess_tokens == status.accepted_tokens > 20

    metrics = Metrics()
    metrics.speculation(_stats(outcome.counts))
    values = values_of(metrics.render().decode())
    for name, value in (("guess", status.guess_tokens), ("accepted_guess", status.accepted_tokens)):
        assert values[f"slipstream:spec_decode_num_{name}_tokens_total"] == value


async def test_a_placement_on_trial(runner) -> None:
    """With a drafter on the same cores GetStatus names the layout, and says that others compete."""
    rig = Rig(runner, length=None, placement="auto")
    rig.engine.drafter_up(1, HERE)
    rig.submit([1, 2, 3], REPEATING, max_tokens=40, ignore_eos=True)
    names = set()
    while rig.engine.counters.steps < 30:
        assert rig.step()
        status = await _status(rig)
        names.add((status.placement, status.placement_on_trial))
    assert names >= {("shared", True), ("separate", True)}
    rig.finish()
