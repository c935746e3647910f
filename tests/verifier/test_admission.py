"""Expected waits: what they are made of, and that a bad measurement locks nobody out."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from slipstream.core.errors import Overloaded
from slipstream.core.params import SamplingParams, StopConditions
from tests.verifier.rig import Rig
from verifier_service.admission import Admission, Bounds
from verifier_service.drain import Drain
from verifier_service.generation import Generation, GenerationRequest
from verifier_service.metrics import VerifierMetrics

LOADED = SimpleNamespace(
    config=SimpleNamespace(vocab_size=100),
    context_length=10**5,
    fingerprint="f",
    eos_token_ids=frozenset(),
)


@dataclass
class Door:
    """An admission whose places are all taken, and a clock by hand."""

    now: float = 100.0
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        bounds = Bounds(seconds=10.0)
        self.admission = Admission(cast("Any", LOADED), 10**5, bounds, 0, lambda: self.now)

    @property
    def drain(self) -> Drain:
        return self.admission.drain

    def steps(self, count: int, seconds: float, output: int, *, full: bool = True) -> None:
        for _ in range(count):
            self.now += seconds
            self.drain.stepped(0, output, full)

    def ask(self, prompt: int = 100, tenant: str = "", max_tokens: int = 50) -> Generation:
        params, stop = SamplingParams(temperature=0.0), StopConditions(max_tokens=max_tokens)
        request = GenerationRequest(
            "r", (1,) * prompt, params, stop, True, None, lambda _: None, tenant=tenant
        )
        return self.admission.admit(1, request)


def test_a_stall_locks_nobody_out() -> None:
    """A step of a minute, as of a process that was stopped, changes the rate by little, and
    healthy steps undo that though nobody waits; a request that finds nobody waiting is taken
    whatever was measured."""
    door = Door()
    door.steps(200, 0.05, 25)
    healthy = door.drain.rate
    assert healthy == pytest.approx(1000.0, rel=0.1)
    door.steps(1, 60.0, 25)
    assert door.drain.rate > 0.8 * healthy
    door.steps(400, 0.05, 25)
    assert door.drain.rate == pytest.approx(healthy, rel=0.05)
    door.steps(40, 5.0, 1)
    assert door.drain.rate < 1.0, "one that is slow for minutes is slow"
    door.ask()
    with pytest.raises(Overloaded, match="would wait"):
        door.ask()


def test_slow_steps_are_measured_as_they_are() -> None:
    """Steps of five seconds are no stalls where all are: the rate is right after some of them."""
    door = Door()
    door.steps(20, 5.0, 50)
    assert door.drain.rate == pytest.approx(20.0, rel=0.2)


def test_the_engine_measures_while_places_are_full(runner) -> None:
    """The engine shows how fast it is as soon as no place is free, though nobody waits; and not
    while one is."""
    now = [100.0]
    rates = {}
    for places in (1, 2):
        rig = Rig(runner, max_running=places, clock=lambda: now[0])
        rig.submit((1, 2, 3), max_tokens=20, ignore_eos=True)
        for _ in range(15):
            rig.step()
            now[0] += 0.1
        rates[places] = rig.engine.admission.drain.rate
        rig.finish()
    assert rates[1] == pytest.approx(20.0, rel=0.3)
    assert rates[2] == 0.0


@pytest.mark.parametrize("idle", [False, True])
def test_an_old_measurement_fades(idle) -> None:
    """After half an hour with free places, or with nothing to do, nothing is known any more; after
    a minute it is."""
    door = Door()
    door.steps(200, 0.05, 25)

    def rate_after(seconds: int) -> float:
        if idle:
            door.drain.idle()
            door.now += seconds
        else:
            door.steps(seconds * 10, 0.1, 1, full=False)
        return door.drain.rate

    assert rate_after(60) == pytest.approx(1000.0, rel=0.1)
    assert rate_after(1800) == 0.0


def test_own_work_is_no_wait() -> None:
    """A request of more work than may wait is taken where nobody waits, and beside the queue of
    another tenant it waits for one of its requests; who comes behind it waits for all of it."""
    door = Door()
    door.steps(200, 0.05, 5)
    assert door.drain.work(5000, 50) > 200 * 10.0
    door.ask(prompt=5000)
    assert door.admission.expected_wait("") == pytest.approx(5100 / 200, rel=0.1)
    door = Door()
    door.steps(200, 0.05, 5)
    for _ in range(8):
        door.ask(tenant="flood")
    assert door.admission.expected_wait("flood") == pytest.approx(8 * 200 / 200, rel=0.1)
    assert door.admission.expected_wait("large") == pytest.approx(200 / 200, rel=0.1)
    door.ask(prompt=5000, tenant="large")


def test_work_counts_what_caches_usually_lack() -> None:
    """Of a prompt counts the part that recent prompts did not find in the cache."""
    drain = Drain(lambda: 0.0)
    assert drain.work(1000, 50) == 1100.0
    for _ in range(50):
        drain.started(1000, 900)
    assert drain.work(2000, 50) == pytest.approx(300.0)


def test_what_admission_does_is_exported(runner) -> None:
    """Refusals by bound, requests given up, missed deadlines, cut streams and evicted blocks are
    metrics of the verifier."""
    now = [100.0]
    bounds = Bounds(requests=1, seconds=2.0)
    rig = Rig(runner, max_running=1, clock=lambda: now[0], bounds=bounds)
    metrics = VerifierMetrics(rig.engine, None)

    def values() -> dict[str, float]:
        found = {}
        for family in metrics():
            for sample in family.samples:
                name = sample.name.removeprefix("slipstream:").removesuffix("_total")
                found["/".join([name, *sample.labels.values()])] = sample.value
        return found

    before = values()
    rig.submit((1, 2, 3), max_tokens=50, ignore_eos=True, deadline_seconds=8.0)
    rig.step()
    rig.submit((1, 2, 3), max_tokens=5)
    with pytest.raises(Overloaded):
        rig.submit((1, 2, 3), max_tokens=5)
    now[0] += 4.5
    rig.step()
    now[0] += 4.5
    rig.step()
    rig.engine.counters.cut_clients += 1
    runner.pool.num_evicted += 1
    rig.finish()
    after = values()
    for name, count in {
        "requests_refused/queue": 1,
        "requests_refused/wait": 0,
        "requests_refused/deadline": 0,
        "requests_given_up": 1,
        "deadlines_missed": 1,
        "streams_cut/unread": 1,
        "kv_cache_evictions": 1,
    }.items():
        assert after[name] - before[name] == count, name
