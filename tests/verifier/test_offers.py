"""When a sequence that the drafter refused is offered to it again."""

from __future__ import annotations

from verifier_service.offers import Offers


def test_ever_more_seldom_up_to_a_bound() -> None:
    """After 32 steps, then after twice as many each time, and never less often than every 1,024."""
    offers, waits = Offers(), []
    for _ in range(8):
        offers.refused()
        waits.append(1)
        while not offers.due():
            waits[-1] += 1
    assert waits == [32, 64, 128, 256, 512, 1024, 1024, 1024]
    assert not offers.due(), "an offer that was not refused is not made again"
