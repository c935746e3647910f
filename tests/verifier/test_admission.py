"""Admission by itself: what a refusal says, and what is forgotten of those that are gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from slipstream.core.errors import InvalidParameter, Overloaded
from slipstream.core.params import StopConditions
from slipstream.engine.checkpoint import LoadedModel
from tests.verifier.rig import GREEDY, VOCAB
from verifier_service.admission import Admission, Bounds, retry_after
from verifier_service.drain import Drain
from verifier_service.fairness import service
from verifier_service.generation import GenerationRequest

RATE = 10.0
# Weighted tokens of one request, and the seconds that it takes.
WORK = service(10, 20)
SECONDS = WORK / RATE


def _admission(**bounds) -> Admission:
    """No place is free, and ten weighted tokens a second are worked off."""
    config = SimpleNamespace(vocab_size=VOCAB)
    model = SimpleNamespace(
        config=config, context_length=256, fingerprint="model", eos_token_ids=frozenset()
    )
    admission = Admission(cast("LoadedModel", model), 256, Bounds(**bounds), 0, lambda: 0.0)
    drain = SimpleNamespace(rate=RATE, prompt_rate=RATE, work=service, new=float)
    admission.drain = admission.backlog._drain = cast("Drain", drain)
    return admission


def _ask(admission: Admission, *, token: int = 1, **fields):
    request = GenerationRequest(
        "test", (token,) * 10, GREEDY, StopConditions(20), True, None, lambda _: None, **fields
    )
    return admission.admit(1, request)


def test_when_to_come_back_is_computed() -> None:
    """From the measured rate: when the queue will have drained, when the wait will be as short as
    is allowed, and when it will be as short as the request's own deadline asks for."""
    full = _admission(requests=2, seconds=1000.0)
    for tenant in "ab":
        _ask(full, tenant=tenant)
    with pytest.raises(Overloaded, match="wait already") as refusal:
        _ask(full, tenant="c")
    assert refusal.value.retry_after == pytest.approx(full.expected_wait("c"))
    assert refusal.value.retry_after >= SECONDS
    slow = _admission(seconds=1.5 * SECONDS)
    for _ in range(2):
        _ask(slow)
    with pytest.raises(Overloaded, match="would wait") as refusal:
        _ask(slow)
    assert refusal.value.retry_after == pytest.approx(0.5 * SECONDS)
    with pytest.raises(Overloaded, match="deadline") as refusal:
        _ask(_with_two(), deadline_seconds=1.25 * SECONDS)
    assert refusal.value.retry_after == pytest.approx(0.75 * SECONDS)


def _with_two() -> Admission:
    admission = _admission(seconds=1000.0)
    for _ in range(2):
        _ask(admission)
    return admission


def test_those_who_are_refused_are_told_to_come_one_by_one() -> None:
    """Each when the one before it has been let in, over ten seconds, and then from the beginning;
    those of another tenant do not come behind them."""
    admission = _admission(seconds=1.5 * SECONDS)
    for tenant in "aab":
        _ask(admission, tenant=tenant)
    hints = []
    for tenant in "aabaa":
        with pytest.raises(Overloaded) as refusal:
            _ask(admission, tenant=tenant)
        hints.append(refusal.value.retry_after)
    room = admission.expected_wait("a") - 1.5 * SECONDS
    assert room == admission.expected_wait("b") - 1.5 * SECONDS
    assert hints == pytest.approx([room, room + SECONDS, room, room + 2 * SECONDS, room])


def test_a_full_queue_has_room_for_who_matters_more() -> None:
    """However many wait with higher numbers; but whatever numbers clients make up, no more than
    twice as many wait as are allowed."""
    admission = _admission(requests=4, seconds=1e6)
    for tenant in "abcd":
        _ask(admission, tenant=tenant, priority=5)
    with pytest.raises(Overloaded):
        _ask(admission, tenant="e", priority=5)
    for number in range(4):
        _ask(admission, tenant="e", priority=-number)
    with pytest.raises(Overloaded):
        _ask(admission, tenant="f", priority=-9)


def test_the_hint_is_bounded() -> None:
    """Half a second at least, ten minutes at most, one second where nothing was measured."""
    assert [retry_after(seconds) for seconds in (0.0, 0.01, 7.0, 1e9)] == [1.0, 0.5, 7.0, 600.0]


def test_who_matters_less_is_no_wait() -> None:
    """Work of lower priority numbers comes first, that of higher ones does not."""
    admission = _admission(seconds=1000.0)
    _ask(admission, priority=0)
    assert admission.expected_wait(priority=-1) == 0.0
    assert admission.expected_wait(priority=1) == pytest.approx(SECONDS)


def test_what_is_gone_is_forgotten() -> None:
    """A request that is refused for its content, or has left, makes nobody wait."""
    admission = _admission(requests=1, seconds=1000.0)
    for _ in range(3):
        with pytest.raises(InvalidParameter):
            _ask(admission, token=VOCAB)
    admission.left(_ask(admission))
    assert admission.expected_wait() == 0.0
    _ask(admission)
