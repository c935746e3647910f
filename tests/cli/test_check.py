"""`slipstream check` against servers that lie, and against a real gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from slipstream.cli import generation_check
from slipstream.cli.generation_check import PROMPTS
from slipstream.cli.main import app
from slipstream.core.errors import ConfigurationError
from slipstream.wire.fakes import FakeBehaviour
from tests.cli.lying_server import BLOCK, READY, LyingServer, lying_server
from tests.gateway.conftest import hf_tokenizers, make_rig, model_folder

__all__ = ["hf_tokenizers", "make_rig", "model_folder"]


class Clock:
    """A real clock that stands still, but for sleep, which is over at once."""

    def __init__(self) -> None:
        self._now = time.monotonic()

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture(scope="module")
def one_server() -> Iterator[LyingServer]:
    with lying_server() as server:
        yield server


@pytest.fixture
def server(one_server: LyingServer, monkeypatch: pytest.MonkeyPatch) -> LyingServer:
    one_server.reset()
    monkeypatch.delenv("SLIPSTREAM_API_KEY", raising=False)
    monkeypatch.setattr(generation_check, "time", Clock())
    return one_server


def check(url: str, *options: str) -> Any:
    return CliRunner().invoke(app, ["check", url, *options])


def test_honest_server_passes(server: LyingServer) -> None:
    """Every way of asking is tried at both temperatures, and each check has its line."""
    result = check(server.url, "--expect-drafts")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "ok    ready",
        "ok    greedy",
        "ok    temperature 1, seed 20",
        "ok    drafts",
    ]
    assert "1 of 1 verifiers serve, session store ok, model m" in lines[0]
    # Of two ways with speculation at two temperatures, 12 - 5 drafts each.
    assert "28 drafts of the drafter's were verified, 24 of them" in lines[3]
    asked = [(r["temperature"], r["speculative"], bool(r.get("stream"))) for r in server.requests]
    ways = [(False, False), (False, True), (True, False), (True, True)]
    assert asked == [(t, *way) for t in (0, 1) for way in ways]
    assert {r.get("seed") for r in server.requests if r["temperature"]} == {20}


@pytest.mark.parametrize(
    ("lies", "phrase"),
    [
        ({"speculative": {"text": " and then X"}}, "whole with speculation is not what whole wi"),
        ({"streamed": {"text": " and thus"}}, "streamed without speculation is not what"),
        ({"streamed": {"text": " and thus"}}, "from character 7 on 'us' against 'en The"),
        ({"speculative": {"tokens": 8}}, "8 tokens against 7"),
        ({"streamed": {"finish_reason": "stop"}}, "it ended by stop, not length"),
        ({"plain": {"block": BLOCK}}, "4 steps carried drafts all the same"),
        ({"plain": {"tokens": 0}}, "an answer of 0 tokens"),
        ({"streamed": {"finish_reason": None}}, "finish reason None"),
    ],
)
def test_every_lie_fails(server: LyingServer, lies: Any, phrase: str) -> None:
    """An answer that differs in any way fails at both temperatures, and is shown."""
    server.lies = lies
    result = check(server.url)
    assert result.exit_code == 1
    failed = [line for line in result.output.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 2
    assert phrase in failed[0]


def test_near_ties_of_fast_exactness(server: LyingServer) -> None:
    """Where exactness is fast one prompt's difference is a note, and one in every prompt fails."""
    server.ready = {**READY, "verifiers": [{"state": "serving", "exactness": "fast"}]}
    server.lies = {"speculative": {"text": "other"}}
    server.honest = {PROMPTS[1]}
    passed = check(server.url)
    assert passed.exit_code == 0, passed.output
    assert passed.output.count("it may be a near-tie") == 2
    server.honest = set()
    assert check(server.url).exit_code == 1


def test_drafts_of_a_drafter_that_comes_late(server: LyingServer) -> None:
    """Guesses alone are not enough: it asks on until the drafter's own drafts come."""
    guesses = {**BLOCK, "num_guess_tokens": 12, "num_accepted_guess_tokens": 9}
    server.block = [*[guesses] * 6, BLOCK]
    result = check(server.url, "--expect-drafts")
    assert result.exit_code == 0, result.output
    assert "7 drafts of the drafter's were verified, 6 of them accepted" in result.output
    assert len(server.requests) == 8 + 3


@pytest.mark.parametrize(
    ("block", "phrase"),
    [
        ({**BLOCK, "num_guess_tokens": 12}, "no drafter is connected (it is starting)"),
        ({"num_spec_steps": 3}, "does not tell how many drafts"),
    ],
)
def test_no_drafts_until_the_deadline(server: LyingServer, block: Any, phrase: str) -> None:
    """Without a draft of the drafter's it fails at the deadline, with what /ready says of it."""
    server.block = block
    server.ready = {**READY, "drafter": {"connected": False, "detail": "it is starting"}}
    result = check(server.url, "--expect-drafts", "--timeout", "5")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("FAIL  drafts: ")
    assert phrase in result.output


def test_it_waits_for_readiness_and_room(server: LyingServer) -> None:
    """A server that is not ready yet, or has no room, is asked again, and each reason told once."""
    server.ready = [{"ready": False, "missing": ["verifier"]}, READY]
    server.refusals = [429, 503, 503, 503]
    result = check(server.url)
    assert result.exit_code == 0, result.output
    assert result.output.count("note  asked again") == 2


def test_slow_answers_end_at_the_deadline(
    server: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time holds for all answers together: what is left of them is not asked for."""
    clock = Clock()
    monkeypatch.setattr(generation_check, "time", clock)
    look_at = generation_check.GenerationCheck._look_at

    def slow(*given: Any) -> None:
        clock.sleep(2.0)
        look_at(*given)

    monkeypatch.setattr(generation_check.GenerationCheck, "_look_at", slow)
    result = check(server.url, "--timeout", "5")
    assert result.exit_code == 1
    assert "the time (--timeout) was over" in result.output
    assert len(server.requests) < 8


def test_never_ready(server: LyingServer) -> None:
    """At the deadline it says what is missing."""
    server.ready = {"ready": False, "missing": ["no verifier serves"]}
    result = check(server.url, "--timeout", "5")
    assert (result.exit_code, result.output.splitlines()) == (
        1,
        ["FAIL  ready: the server did not become ready: no verifier serves"],
    )


def test_route_without_ready(server: LyingServer) -> None:
    """Behind a route that has no /ready the requests tell."""
    server.ready = None
    assert check(server.url).exit_code == 0


def test_keys(server: LyingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key comes from a file or the environment; a wrong one is a failure, and is not shown."""
    server.key = "sk-right"
    file = tmp_path / "key"
    file.write_text("sk-right\n")
    assert check(server.url, "--api-key-file", str(file)).exit_code == 0
    monkeypatch.setenv("MY_KEY", "sk-right\n")
    assert check(server.url, "--api-key-env", "MY_KEY").exit_code == 0
    monkeypatch.setenv("SLIPSTREAM_API_KEY", "sk-wrong")
    result = check(server.url)
    assert result.exit_code == 1
    assert "FAIL  ready: no (401)" in result.output
    assert "sk-wrong" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["127.0.0.1:8000"], "is no URL"),
        (["http://h:x"], "is no URL"),
        (["http://h", "--api-key-file", "/nowhere"], "cannot read /nowhere"),
        (["http://h", "--api-key-file", "README.md"], "one API key and nothing else"),
    ],
)
def test_unusable_options(arguments: list[str], message: str) -> None:
    """What cannot be used is one message; `slipstream` ends with 2 for such an error."""
    result = check(*arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert message in result.exception.message


async def test_real_gateway(make_rig: Any) -> None:
    """With a real gateway: a verifier that keeps the rule passes, one that wavers fails, and what
    it verified is told apart from nothing."""
    wavers = False
    asked: list[int] = []

    def tokens(prompt: Any, params: Any, place: int) -> int:
        asked.append(place)
        return (
            30
            + (
                place
                + (params.seed if params.temperature else 0)
                + (wavers and len(asked) % 7 == 0)
            )
            % 40
        )

    async with make_rig(FakeBehaviour(tokens, chunks=(3,))) as rig:
        result = await asyncio.to_thread(check, rig.url, "--expect-drafts")
        assert result.exit_code == 0, result.output
        assert "drafts of the drafter's were verified" in result.output
        wavers = True
        result = await asyncio.to_thread(check, rig.url)
        assert result.exit_code == 1
        assert "from character" in result.output
