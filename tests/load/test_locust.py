"""Locust itself, headless, against a gateway whose verifier has no model."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slipstream.bench.load.book import known_answers
from slipstream.bench.load.outcomes import FAULTS, Outcome, Verdict
from slipstream.bench.load.statistics import Slo
from slipstream.core.errors import Overloaded
from tests.integration.processes import until
from tests.load.conftest import DIALOGUES, MODEL, answer
from tests.load.tally import Tally

# Where the machine is busy a load lasts longer; see `until_enough`.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]


async def locust(
    served,
    folder: Path,
    *users: str,
    seconds: int = 3,
    stop: int = 20,
    more=(),
    name: str = "load",
) -> tuple[int, dict]:
    """Exit code and figures of a run, whose files in `folder` begin with `name`."""
    known = await known_answers(served.door, MODEL, DIALOGUES, folder, print)
    book = folder / f"known-{known.name}.json"
    command = [sys.executable, "-m", "locust", "-f", "tests/load/locustfile.py", *users]
    command += ["--headless", "-u", str(max(2, len(users))), "-r", "10", "-t", f"{seconds}s"]
    command += ["--stop-timeout", str(stop), "--only-summary", "--csv", str(folder / name)]
    command += ["--html", str(folder / f"{name}.html"), "--figures", str(folder / name)]
    command += ["--host", served.url, "--grpc", served.grpc, "--model", "tiny"]
    command += ["--book", str(book), *more]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 120 + seconds + stop)
    finally:
        if process.returncode is None:
            process.kill()
    sys.stdout.write(said.decode())
    return process.returncode, json.loads((folder / f"{name}_outcomes.json").read_text())


async def until_enough(run, enough) -> tuple[int, dict]:
    """What `run` returns for the first of ever longer loads in which there is what is to be looked
    at: how much is asked within a second says how busy the machine is."""
    for seconds in (3, 12, 48):
        code, found = await run(seconds)
        if enough(found["figures"]["verdicts"]):
            break
    return code, found


@pytest.fixture
async def booked(served, tmp_path):
    """The same, its right answers in a book."""
    await known_answers(served.door, MODEL, DIALOGUES, tmp_path, print)
    return served


async def test_a_right_load_passes_and_shows_its_figures(served, tmp_path):
    """Closed and open loops over both doors, clients leaving before anything has come and in
    mid-stream: exit 0; TTFT, TPOT, chunk gaps and goodput are in Locust's own statistics, exact
    quantiles beside them. Nothing runs on for who has left."""
    served.fake.behaviour = replace(served.fake.behaviour, first_delay=0.1)
    users = ("HttpUser", "GrpcUser", "HttpArrivals", "GrpcArrivals")
    more = ("--rate", "10", "--leave-share", "1", "--slo-ttft", "60", "--slo-tpot", "60")
    code, found = await until_enough(
        lambda seconds: locust(served, tmp_path, *users, seconds=seconds, more=more),
        lambda verdicts: verdicts.get("right", 0) > 5 and verdicts.get("cancelled", 0) > 5,
    )
    assert code == 0
    verdicts = found["figures"]["verdicts"]
    assert set(verdicts) == {"right", "cancelled"}
    assert verdicts["right"] > 5
    with (tmp_path / "load_stats.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = {row["Type"] for row in rows}
    assert {"HTTP", "gRPC", "TTFT", "TPOT", "chunk gap", "goodput", "cancelled"} <= kinds
    early = sum(int(row["Request Count"]) for row in rows if row["Type"] == "cancelled early")
    assert 1 <= early < verdicts["cancelled"]
    # Some were the verifier's already.
    assert served.fake.cancelled
    await until(lambda: served.fake.running == 0)
    total = next(int(row["Request Count"]) for row in rows if row["Name"] == "Aggregated")
    assert total == verdicts["right"]
    with (tmp_path / "load_slo.csv").open() as file:
        lines = {row["kind"]: row for row in csv.DictReader(file)}
    assert set(lines) == {"qa", "chat", "rag", "all"}
    assert float(lines["all"]["ttft p95 ms"]) > 0
    assert "TTFT" in (tmp_path / "load.html").read_text()


async def side_by_side(served, folder: Path, wanted, *runs):
    """What `locust` returns of each run, given as its users and further options, once there are
    answers of all the verdicts `wanted`."""

    def load(index: int, users: tuple[str, ...], more: tuple[str, ...]):
        return until_enough(
            lambda seconds: locust(
                served, folder, *users, seconds=seconds, more=more, name=f"load-{index}"
            ),
            lambda verdicts: wanted <= verdicts.keys(),
        )

    return await asyncio.gather(*(load(index, *run) for index, run in enumerate(runs)))


async def test_one_wrong_token_fails_the_load(booked, tmp_path):
    """A single other token, in one dialogue, deep in an answer: the exit code says so, whichever
    door it came through."""

    def planted(prompt, params, place):
        right = answer(prompt, params, place)
        return right + 1 if place == 10 else right

    booked.fake.behaviour = replace(booked.fake.behaviour, tokens=planted)
    runs = ((("HttpUser",), ()), (("GrpcUser",), ()))
    for code, found in await side_by_side(booked, tmp_path, {"wrong", "right"}, *runs):
        assert code == 1
        assert found["figures"]["verdicts"]["wrong"] > 0
        assert found["figures"]["verdicts"]["right"] > 0
        assert {fault["name"] for fault in found["faults"]} == {"three/0"}


async def test_refusals_fail_only_where_they_are_not_expected(booked, tmp_path):
    """429 and RESOURCE_EXHAUSTED are counted apart, and pass in a scenario of overload only. Users
    of a closed loop come back when they were told to, and not at once."""

    def full(prompt, params, place):
        if params.seed == DIALOGUES[1].seed + 1:
            raise Overloaded("full", retry_after=0.5)
        return answer(prompt, params, place)

    booked.fake.behaviour = replace(booked.fake.behaviour, tokens=full)
    users = ("HttpUser", "GrpcUser")
    wanted, allowed = {"right", "refused"}, ("--allow-refusals",)
    runs = await side_by_side(booked, tmp_path, wanted, (users, ()), (users, allowed))
    assert [code for code, _ in runs] == [1, 0]
    for _, found in runs:
        assert set(found["figures"]["verdicts"]) == {"right", "refused"}
        # Two users, each of whom rests for half a second or more.
        seconds = found["figures"]["seconds"]
        assert found["figures"]["verdicts"]["refused"] <= 2 * (seconds / 0.5 + 1)


def tally(*verdicts, allow_refusals=True):
    made = Tally(None, Slo(), allow_refusals=allow_refusals)
    made.outcomes = [Outcome("n", "qa", each, 0, 1, 0.5, (), 4, 4, 0) for each in verdicts]
    return made


def test_a_load_without_an_answer_never_passes():
    """Nothing asked, all refused or all left is no success; one fault among many is none either."""
    right, refused, left = Verdict.RIGHT, Verdict.REFUSED, Verdict.CANCELLED
    assert [tally(*some).exit_code for some in ((), (refused,), (left,), (refused, left))] == [
        1
    ] * 4
    assert tally(right, refused, left).exit_code == 0
    assert tally(right, refused, allow_refusals=False).exit_code == 1
    for fault in FAULTS:
        assert tally(*[right] * 50, fault).exit_code == 1


async def test_an_answer_that_hangs_fails_the_load(booked, tmp_path):
    """One that never ends is a missing one: closed loops and open ones give it up, and say so,
    before Locust ends their users; what a user asks after that may be ended, and counts as well."""
    booked.fake.behaviour = replace(booked.fake.behaviour, hang_after=2)
    users = ("HttpUser", "GrpcUser", "HttpArrivals", "GrpcArrivals")
    code, found = await locust(booked, tmp_path, *users, seconds=1, stop=3)
    assert code == 1
    assert set(found["figures"]["verdicts"]) == {"missing"}
    assert all("no end within" in fault["detail"] for fault in found["faults"])


def test_requests_of_which_nothing_is_known_fail_the_load():
    """Where Locust ended a user in the middle of its request."""
    made = tally(Verdict.RIGHT, Verdict.RIGHT)
    made.asked = 2
    assert (made.unheard, made.exit_code) == (0, 0)
    made.asked = 3
    assert (made.unheard, made.exit_code) == (1, 1)
