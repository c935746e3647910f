"""More than can be served, in simulated time: what is taken, what is refused, and what is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.bench.load.arrivals import poisson, until
from tests.verifier.crowd import Arrival, Crowd, Visit, chats, first_tokens, taken

_OVERLOAD_SECONDS = 120.0


@pytest.fixture
def crowd(tmp_path: Path) -> Crowd:
    return Crowd(tmp_path)


def capacity(crowd: Crowd) -> float:
    """Requests per second of an engine with enough to do, that has seen some load by then."""
    start = crowd.now
    visits = taken(crowd.run(chats([0.0] * 24 + [0.4 * i for i in range(40)], seed=1)))
    return len(visits) / (max(map(ended, visits)) - start)


def ended(visit: Visit) -> float:
    assert visit.ended is not None
    return visit.ended


def test_overload_leaves_nothing_behind(crowd: Crowd) -> None:
    """Four times the capacity for two minutes, default settings: as much is served as can be, all
    that is taken ends without an error within ten seconds of the last arrival, though most of it
    waits for its prompt with a place; and those who come then wait for nobody."""
    rate = capacity(crowd)
    calm = until(30.0, poisson(0.5 * rate, 3))
    before = first_tokens(crowd.run(chats(calm, seed=3)))
    assert len(before) == len(calm)
    over = crowd.now + _OVERLOAD_SECONDS
    visits = crowd.run(chats(until(_OVERLOAD_SECONDS, poisson(4 * rate, 1)), seed=2))
    served = taken(visits)
    assert len(visits) > 3 * len(served)
    assert all(visit.outcome is not None and visit.outcome.error is None for visit in served)
    assert sum(ended(visit) < over for visit in served) > 0.8 * rate * _OVERLOAD_SECONDS
    assert max(map(ended, served)) < over + 10.0
    crowd.now = over + 10.0
    after = first_tokens(crowd.run(chats(calm, seed=3)))
    assert len(after) == len(calm)
    assert after[-len(after) // 20] < 1.25 * before[-len(before) // 20]


def test_prompts_that_have_a_place_count(crowd: Crowd) -> None:
    """With places free for all, a newcomer is told to wait for the prompts before it, and about as
    long as it then waits."""
    capacity(crowd)
    engine = crowd.rig.engine
    crowd.run([Arrival(0.0, 400, 50) for _ in range(12)], until=0.5)
    assert engine.num_running == 12
    assert engine.num_waiting == 0
    expected, begun = engine.expected_wait_seconds, crowd.now
    (last,) = crowd.run([Arrival(0.0, 16, 4)])
    assert last.first is not None
    assert expected > 3.0
    assert 0.6 * expected < last.first < 1.6 * expected
    assert crowd.now > begun


def test_a_burst_is_taken_where_lasting_overload_is_not(crowd: Crowd) -> None:
    """Sixteen at once wait longer than a queue may that never ends, and all are taken."""
    rate = capacity(crowd)
    burst = crowd.run([Arrival(0.0, 250, 40) for _ in range(16)])
    assert len(taken(burst)) == 16
    assert first_tokens(burst)[-1] > 4.0
    lasting = crowd.run(chats(until(60.0, poisson(2 * rate, 1)), seed=2))
    refused = [visit for visit in lasting if visit.refusal is not None]
    assert len(refused) > 0.3 * len(lasting)
    settled = [visit for visit in taken(lasting) if visit.arrival.at > 20.0]
    assert first_tokens(settled)[len(settled) // 2] < 5.0


def test_one_long_prompt_refuses_nobody(crowd: Crowd) -> None:
    """While a prompt is computed that takes longer than anybody may wait, others are taken."""
    capacity(crowd)
    long = Arrival(0.0, 4000, 20)
    decoding = [Arrival(0.0, 10, 500) for _ in range(8)]
    visits = crowd.run([*decoding, long], until=1.0)
    crowd.rig.engine.admission._behind_since = crowd.now - 60.0  # as if it had lasted
    assert crowd.rig.engine.expected_wait_seconds > 4.0
    (other,) = crowd.run([Arrival(0.0, 10, 5)])
    assert other.refusal is None
    assert all(visit.refusal is None for visit in visits)


def test_who_matters_more_is_let_in(crowd: Crowd) -> None:
    """In lasting overload by others, a request of a lower priority number is taken, and has its
    first token before those that wait."""
    rate = capacity(crowd)
    flood = chats(until(60.0, poisson(4 * rate, 1)), seed=2)
    urgent = [Arrival(10.0 + 5 * i, 100, 20, "urgent", -1) for i in range(8)]
    visits = crowd.run(sorted([*flood, *urgent], key=lambda arrival: arrival.at))
    first = [v for v in visits if v.arrival.priority < 0]
    assert all(visit.refusal is None for visit in first)
    assert first_tokens(first)[-1] < 1.0
