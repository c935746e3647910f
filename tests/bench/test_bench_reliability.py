"""`slipstream bench reliability`: its arithmetic, its options, and how it looks and hits."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from slipstream.bench.load.asks import Ask, Extras, grpc_request, http_body
from slipstream.bench.load.outcomes import Known, outcome
from slipstream.bench.load.reading import Reading
from slipstream.bench.load.serve import Findings, fault_bar
from slipstream.bench.reliability import failover, idle_sessions, second_turn, store
from slipstream.bench.reliability.blow import Blow, struck_in
from slipstream.bench.reliability.figures import (
    Growth,
    Pause,
    cell,
    differences,
    growth,
    pause,
    ratios,
    spread,
)
from slipstream.bench.reliability.fleet import direct
from slipstream.bench.reliability.making import Makers
from slipstream.bench.reliability.pair import halves
from slipstream.bench.reliability.prefill import First, first_token
from slipstream.bench.reliability.sediment import SqliteSediment, sediment
from slipstream.bench.reliability.settings import (
    QUICK,
    Hit,
    ReliabilitySettings,
    Result,
    document,
)
from slipstream.cli.bench_reliability import chosen, hits_of, whole_numbers
from slipstream.cli.main import app
from slipstream.core.errors import ConfigurationError, InternalError
from slipstream.wire.fakes import FakeBehaviour, FakeVerifier

ASK = Ask("q", "qa", (("user", "what?"),), 4)
KNOWN = Known("abcd", (1, 2, 3, 4), "length", 7)


@pytest.fixture
def settings(tmp_path):
    return ReliabilitySettings(tmp_path, "tiny", tmp_path / "found.json")


def test_spreads_leave_out_what_is_missing():
    """Median, least and most of what is there; one value stands alone; nothing is a dash."""
    assert cell(spread([3.0, None, 1.0, 2.0]), ".1f") == "2.0 (1.0..3.0)"
    assert cell(spread([0.0125]), ".1f", 1000) == "12.5"
    assert cell(spread([None])) == "-"


def test_comparisons_are_pair_by_pair():
    """A pair of which one is missing is left out, and so is a ratio to nothing."""
    assert ratios([2.0, None, 3.0, 4.0], [4.0, 1.0, 0.0, 2.0]) == [0.5, 2.0]
    assert differences([2.0, None, 3.0], [1.5, 1.0, None]) == [0.5]


def test_the_pause_is_the_longest_gap_that_ends_after_the_blow():
    """Gaps before the blow tell the pace; a longer one of them is not the pause."""
    arrivals = [0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 3.0, 3.1, 3.3]
    found = pause(arrivals, 0.75)
    assert found == Pause(
        pytest.approx(2.1), pytest.approx(0.15), pytest.approx(0.1), pytest.approx(0.5)
    )


def test_a_blow_within_the_pause_begins_before_nothing():
    """Where no chunk comes between the blow and the pause, the gap began before the blow."""
    found = pause([0.0, 0.1, 0.2, 1.2], 0.25)
    assert found is not None
    assert found.since == pytest.approx(-0.05)


@pytest.mark.parametrize(("arrivals", "blow"), [([0.0, 0.1, 0.2], 0.3), ([0.0, 1.0], 0.5), ([], 1)])
def test_a_stream_that_does_not_go_on_has_no_pause(arrivals, blow):
    """Nothing after the blow, or no pace before it: there is no figure."""
    assert pause(arrivals, blow) is None


def test_growth_is_told_by_halves():
    """Twice as steep in its second half: a bend of two, over the same mean."""
    points = [(0, 100.0), (25, 125.0), (50, 150.0), (75, 200.0), (100, 250.0)]
    assert growth(points) == Growth(1.5, 1.0, 2.0)
    assert growth(points).bend == 2.0
    assert growth(points[:2]) is None


def test_what_does_not_grow_has_no_bend():
    """There is nothing to compare the second half with."""
    assert growth([(0, 5.0), (1, 5.0), (2, 9.0)]).bend is None


@pytest.mark.parametrize(
    "field",
    [
        {"repeats": 0},
        {"prompts": ()},
        {"prompts": (0,)},
        {"seconds": 0.0},
        {"ttl": 0.0},
        {"hit_after": 256},
        {"hit_after": 1},
        {"sessions": 3},
    ],
)
def test_settings_that_measure_nothing_are_refused(tmp_path, field):
    """A number out of its range ends with a message before anything is started."""
    with pytest.raises(ConfigurationError):
        ReliabilitySettings(tmp_path, "m", tmp_path / "o", **field)


def test_quick_gives_way_to_what_is_given(tmp_path):
    """Small numbers for what was not said, and they fit together."""
    given = {"repeats": 5, "sessions": None}
    assert chosen(given, quick=False) == {"repeats": 5}
    assert chosen(given, quick=True) == {**QUICK, "repeats": 5}
    assert ReliabilitySettings(tmp_path, "m", tmp_path / "o", **QUICK).sessions == 200


def test_lists_of_the_command_line():
    """Words and whole numbers separated by commas; others are errors that name the option."""
    assert hits_of("kill, term") == (Hit.kill, Hit.term)
    assert whole_numbers("--prompts", "512,1500") == (512, 1500)
    with pytest.raises(ConfigurationError, match="--hits takes any of kill,stop,term"):
        hits_of("kill,maim")
    with pytest.raises(ConfigurationError, match="--prompts takes whole numbers"):
        whole_numbers("--prompts", "1.5")
    ended = CliRunner().invoke(app, ["bench", "reliability", "--scenario", "nothing"])
    assert ended.exit_code == 2


def test_a_turn_of_a_session_is_asked_for():
    """Session and turn are in the body and in the gRPC request; turn 0 is one, too."""
    extras = Extras(session_id="s", session_turn=0)
    body = http_body(ASK, "m", extras)
    assert (body["session_id"], body["session_turn"]) == ("s", 0)
    assert not {"session_id", "session_turn"} & http_body(ASK, "m", Extras()).keys()
    request = grpc_request(ASK, extras)
    assert (request.session_id, request.HasField("session_turn")) == ("s", True)
    assert not grpc_request(ASK, Extras()).HasField("session_turn")


def test_every_hit_comes_with_and_without_a_holder(settings):
    """Whoever is told to stop can lend keys and values, unless it lends none at all."""
    found = failover.cases(settings)
    assert len(found) == len({case.name for case in found}) == 2 * 3 * 2
    assert {(case.holder, case.verifier_options) for case in found if case.hit is Hit.term} == {
        ("the one that stops", ()),
        ("nobody", ("--kv-leases", "0")),
    }
    assert {case.verifier_options for case in found if case.hit is not Hit.term} == {()}


@pytest.mark.parametrize(("holder", "detection"), [("nobody", 1.5), ("the other one", 1.9)])
def test_detection_is_the_pause_without_the_prefill(settings, holder, detection):
    """With a holder that survives, only what it lacks is computed; rows and JSON are of that."""
    case = failover.Case(Hit.kill, 512, holder)
    reading = Reading(due=0.0, sent=0.0, failure="lost")
    run = failover.Run(
        case=case,
        outcome=outcome("q", "k", reading, KNOWN),
        pause=Pause(2.0, 0.0, 0.05, 0.06),
        cold=First(0.5, 0),
        warm=First(0.1, 500),
        committed=48,
        resumed=1,
        pulls=0,
        pulled_tokens=0,
    )
    assert run.detection == pytest.approx(detection)
    result = failover._result(settings, [run])
    [row] = [row for row in result.sheet.rows if row[0] == case.name]
    assert row[1:] == ("2.00", f"{detection:.2f}", f"{2 - detection:.2f}", "50.0", "1/1", "0/1")
    assert [(bar.measured, bar.met) for bar in result.findings.bars] == [(1, False), (1, False)]
    json.dumps(document([result], settings), allow_nan=False)


async def test_the_one_that_serves_is_hit_when_it_is_time():
    """Of two verifiers the one that runs the request gets the signal, once, after so many
    tokens."""
    sent = []
    members = [SimpleNamespace(hit=lambda number, name=name: sent.append((name, number)))
               for name in "ab"]  # fmt: skip
    blow = Blow(Hit.stop, 3, SimpleNamespace(one=members[0], other=members[1]))
    async with (
        FakeVerifier([5]) as idle,
        FakeVerifier([5]) as busy,
        direct(idle.address) as one,
        direct(busy.address) as other,
    ):
        finding = asyncio.create_task(blow.find([one, other]))
        reading = Reading(due=0.0, sent=0.0, token_ids=[1, 2, 3])
        assert not blow.look(reading)
        with pytest.raises(InternalError, match="before its verifier was hit"):
            struck_in(blow, reading)
        busy.running = 1
        await asyncio.wait_for(finding, 60)
        blow.look(Reading(due=0.0, sent=0.0, token_ids=[1, 2]))
        assert sent == []
        reading.token_ids.append(4)
        assert not blow.look(reading)
        assert not blow.look(reading)
    assert sent == [("b", signal.SIGSTOP)]
    struck = struck_in(blow, reading)
    assert (struck.member, struck.tokens) == (members[1], 4)


def test_cores_are_halved():
    """An only core is for both."""
    assert halves([0, 1, 2]) == ([0, 1], [2])
    assert halves([3]) == ([3], [3])


async def test_a_first_token_is_asked_for_directly():
    """With a salt of its own unless one is given, and with the holder; the first token counts."""
    behaviour = FakeBehaviour([5, 6, 7], cached=2)
    async with FakeVerifier(behaviour) as fake, direct(fake.address) as verifier:
        found = await first_token(verifier, [1, 2, 3], holder="h:1", tokens=3)
        await first_token(verifier, [1, 2, 3])
        await first_token(verifier, [1, 2, 3], "/mine")
    assert found.cached == 2
    assert found.seconds > 0
    one, two, three = fake.requests
    assert (one.kv_holder, one.stop.max_tokens, one.stop.ignore_eos) == ("h:1", 3, True)
    assert len({one.cache_salt, two.cache_salt, "/mine", ""}) == 4
    assert three.cache_salt == "/mine"


def _taken(speed, ttft):
    return store.Taken(speed=speed, ttft=ttft, cpu=[0.5] * len(speed))


def test_redis_is_held_against_none_by_repeat():
    """Medians of ratios and differences of the same repeat, not of all of either."""
    taken = {
        "off": _taken([100.0, 50.0, 200.0], [0.100, 0.300, 0.200]),
        "sqlite": _taken([100.0, 50.0, 200.0], [0.100, 0.300, 0.200]),
        "redis": _taken([99.0, 50.0, 190.0], [0.104, 0.310, 0.201]),
    }
    speed, ttft = store.bars(taken)
    assert (speed.measured, speed.met) == (pytest.approx(0.99), True)
    assert (ttft.measured, ttft.met) == (pytest.approx(4.0), True)
    taken["redis"] = _taken([None], [None])
    taken["off"] = _taken([100.0], [0.1])
    assert [bar.met for bar in store.bars(taken)] == [None, None]


def test_a_second_turn_is_compared_with_its_own_prefill():
    """The bar is of turns whose keys and values live; others have rows."""
    turns = [
        second_turn.Turn("alive", 0, 0.1, 1.0, 1500, 0),
        second_turn.Turn("alive", 1, 0.4, 2.0, 1500, 0),
        second_turn.Turn("gone", 0, 1.0, 1.0, 0, 0),
        second_turn.Turn("pulled", 0, None, 1.0, 0, 1),
    ]
    result = second_turn._result(second_turn._Taken(turns, []))
    assert result.findings.bars[0].measured == pytest.approx(0.15)
    assert {row[0]: (row[3], row[5]) for row in result.sheet.rows} == {
        "alive": ("0.150 (0.100..0.200)", "0/2"),
        "pulled": ("-", "1/1"),
        "pulled, asked directly": ("-", "0/0"),
        "gone": ("1.000", "0/1"),
    }


def _found(stored, *, left=0, made=100, refused=0):
    levels = tuple(
        idle_sessions.Level(25 * place, 1000, each, 3 * place, {"session": place})
        for place, each in enumerate(stored)
    )
    return idle_sessions.Found("redis", levels, left, left, None, made, refused, 1.0)


def test_idle_sessions_must_be_linear_and_go():
    """A bend, a refusal and a key that stays are each a bar that is not met."""
    assert [bar.met for bar in idle_sessions.bars_of(_found([0, 25, 50, 75, 100]))] == [True] * 3
    bad = _found([0, 25, 50, 100, 150], left=2, refused=1)
    assert [bar.met for bar in idle_sessions.bars_of(bad)] == [False] * 3
    sheet = idle_sessions._sheet([bad])
    assert sheet.rows[-1] == ("redis, 100", "0.0", "0.00", "12", "2", "0")


def test_no_sessions_leave_nothing_that_could_be_judged():
    """Where none was made, that no key stays says nothing."""
    found = idle_sessions.bars_of(_found([5] * 5, made=0, refused=100))
    assert [bar.met for bar in found] == [False, None, None]


async def test_makers_count_what_was_stored():
    """A turn counts as made only where the answer says that it is stored."""
    asked = []

    def answer(request):
        if request.method == "DELETE":
            return httpx.Response(200, json={})
        body = json.loads(request.content)
        asked.append(body)
        number = int(body["session_id"].rpartition("-")[2])
        if number == 3:
            return httpx.Response(409, json={"error": "conflict"})
        return httpx.Response(200, json={"session": {"stored": number != 4}})

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        makers = Makers(client, "tiny", 5)
        await makers.make(6, "idle")
        assert (makers.made, makers.refused) == (4, 2)
        assert makers.failure
        assert {each["session_turn"] for each in asked} == {0}
        assert len({each["messages"][0]["content"] for each in asked}) == 6


async def test_a_file_is_looked_into_from_outside(tmp_path):
    """Rows by table and bytes, while somebody else has it open; nothing where there is none."""
    async with sediment("sqlite", tmp_path, tmp_path) as held:
        assert isinstance(held, SqliteSediment)
        assert (await held.size(), await held.keys()) == (0, 0)
        with closing(sqlite3.connect(held.path)) as writer:
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("CREATE TABLE document (key TEXT)")
            writer.execute("CREATE TABLE log (key TEXT)")
            writer.executemany("INSERT INTO document VALUES (?)", [("a",), ("b",)])
            writer.commit()
            assert await held.kinds() == {"document": 2, "log": 0}
            assert await held.keys() == 2
            assert await held.size() > held.path.stat().st_size
        assert held.url == f"sqlite://{tmp_path}/sessions.db"


async def test_a_store_of_another_kind_is_refused(tmp_path):
    """There are two."""
    with pytest.raises(ConfigurationError, match="takes redis and sqlite"):
        async with sediment("tape", tmp_path, tmp_path):
            pass


def test_results_are_shown_and_kept(settings):
    """Every scenario of a run is in the JSON, with bars and faults; its table has all rows."""
    wrong = outcome("q", "k", Reading(0.0, 0.0, text="x"), KNOWN)
    taken = {name: _taken([100.0, 90.0], [0.1, 0.2]) for name in ("off", "sqlite", "redis")}
    sheet = store._sheet({name: store._row(each, taken["off"]) for name, each in taken.items()})
    result = Result(Findings("store", (*store.bars(taken), fault_bar([wrong])), {}), sheet, [wrong])
    found = json.loads(json.dumps(document([result], settings), allow_nan=False))
    assert [bar["met"] for bar in found["scenarios"]["store"]["bars"]] == [True, True, False]
    assert found["scenarios"]["store"]["faults"][0]["verdict"] == "wrong"
    assert found["run"]["hits"] == ["kill", "stop", "term"]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(sheet.table())
    assert "95.0 (90.0..100.0)" in capture.get()
