"""The requests of a storm, what may be forgotten in it, and what is counted over many lives."""

from __future__ import annotations

import math

import pytest

from tests.chaos.asks import Ask, grpc_request, http_body
from tests.chaos.counters import Counters, samples
from tests.chaos.history import StoreHistory
from tests.chaos.truth import stop_strings
from tests.chaos.workload import Dialogue, workload


def test_a_workload_has_everything_in_it():
    """Reproducible; enough generations; every way, feature and kind of request is there, and a
    question is asked in all ways."""
    made = workload(3, 300)
    assert made == workload(3, 300) != workload(4, 300)
    assert 300 <= made.generations < 305
    asks = made.asks
    ways = {job.way for job in made.jobs if isinstance(job.work, Ask)}
    assert ways == {"stream", "whole", "background", "grpc"}
    talks = [job for job in made.jobs if isinstance(job.work, Dialogue)]
    assert {job.way for job in talks} == {"stream", "whole", "grpc"}
    assert sum(job.generations for job in talks) == 75
    assert {job.way for job in made.jobs if job.work is asks[0]} == ways
    for feature in (
        lambda a: a.temperature == 0.0, lambda a: a.temperature == 1.0, lambda a: a.n == 2,
        lambda a: a.stop_at, lambda a: a.logprobs, lambda a: a.logprobs == 0,
        lambda a: a.top_p < 1, lambda a: a.presence_penalty, lambda a: a.is_chat,
        lambda a: not a.is_chat, lambda a: not a.ignore_eos, lambda a: a.repetition_penalty > 1,
    ):  # fmt: skip
        assert 3 <= sum(bool(feature(ask)) for ask in asks) <= len(asks)
    assert len({job.name for job in made.jobs}) == len(made.jobs)
    assert all(100 <= ask.max_tokens <= 400 for ask in asks)


@pytest.mark.parametrize("ways", [("grpc",), ("session",), ("whole", "session")])
def test_only_the_ways_that_are_wanted(ways):
    """What is left out of the ways is not used, and there are as many generations as ever."""
    made = workload(1, 40, ways=ways)
    assert made.generations >= 40
    used = {"session" if isinstance(j.work, Dialogue) else j.way for j in made.jobs}
    assert used == set(ways)


def test_both_doors_are_asked_the_same():
    """Every field of an ask is in the body and in the message."""
    ask = Ask("a", (("user", "hi"),), 9, 7, 1.0, 0.8, 0.1, 0.2, 1.2, ("x",), None, 2, 3, False)
    body = http_body(ask, "m", {"session_id": "s"}, stream=True)
    request = grpc_request(ask, session_id="s")
    sampling = request.sampling
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"):
        assert body[name] == pytest.approx(getattr(sampling, name)) == getattr(ask, name)
    assert body["repetition_penalty"] == pytest.approx(sampling.repetition_penalty)
    assert (body["max_tokens"], body["ignore_eos"], body["n"]) == (9, False, 2)
    assert (request.stop.max_tokens, request.stop.ignore_eos, request.n) == (9, False, 2)
    assert (body["stop"], list(request.stop_strings)) == (["x"], ["x"])
    assert (body["top_logprobs"], request.logprobs) == (3, 3)
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert [(m.role, m.content) for m in request.chat.messages] == [("user", "hi")]
    assert body["session_id"] == request.session_id == "s"
    legacy = Ask("b", "text", 9, 7, logprobs=0)
    assert http_body(legacy, "m", {}, stream=False)["logprobs"] == 0
    assert grpc_request(legacy).text == "text"


def test_stop_strings_come_where_they_shall():
    """At about the part that was asked for, of whole characters, and not long before."""
    text = "abcdefgh" * 2 + "\ufffd\ufffd" + "ijklmnop" * 2
    (stop,) = stop_strings(text, 0.5)
    assert "\ufffd" not in stop
    assert text.find(stop) == 18
    assert stop_strings("\ufffd" * 20, 0.5) == ()
    assert stop_strings("a" * 20, 0.5) == ()


def test_only_a_disturbed_store_may_forget():
    """Nothing is excused while the store is well and for some time after it was; what was begun
    before the store came back empty is, and what was begun later is not."""
    history = StoreHistory()
    assert not history.was_away(0.0, 100.0)
    number = history.leaves(100.0)
    assert history.was_away(10.0, 101.0)
    assert not history.was_away(10.0, 99.0)
    history.is_back(number, 105.0)
    assert history.away == [(100.0, 105.0)]
    assert history.was_away(110.0, 130.0)
    assert not history.was_away(114.0, math.inf)
    history.emptied.append(102.0)
    assert history.was_emptied(50.0, 103.0)
    assert not history.was_emptied(103.0, 200.0)


def test_counters_outlive_processes():
    """A counter that is lower than before has begun again; other metrics are left alone."""
    page = (
        "# TYPE slipstream:failovers counter\n"
        'slipstream:failovers_total{component="gateway",model_name="m",reason="lost"} 3.0\n'
        "# TYPE slipstream:prompt_tokens counter\n"
        'slipstream:prompt_tokens_total{model_name="m"} 9.0\n'
    )
    assert samples(page) == {"slipstream:failovers_total{lost}": 3.0}
    counters = Counters()
    for gateway, value in (("a", 2.0), ("a", 5.0), ("b", 1.0), ("a", 1.0), ("a", 4.0)):
        counters.take(gateway, {"x": value})
    assert counters.totals == {"x": 10}
