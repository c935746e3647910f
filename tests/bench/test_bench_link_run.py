"""Speed against the link: what is asked, what is reported, and a run of real processes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from slipstream.bench.link import Link, precise_loop
from slipstream.bench.link_report import document, draw, table
from slipstream.bench.link_run import (
    LinkSettings,
    Point,
    _results,
    _take,
    _Taken,
    measure_links,
)
from slipstream.bench.questions import DEFAULT_QUESTIONS
from slipstream.bench.records import Generation, Prompt, Speculation
from slipstream.cli.bench_link import numbers
from slipstream.core.errors import ConfigurationError

FIELDS = {"questions": Path("q"), "model": Path("m"), "model_name": "m", "out": Path("o")}
PLAIN, NEAR, FAR = Point(plain=True), Point(0.0), Point(0.02, 100.0)


@pytest.mark.parametrize(
    "field",
    [
        {"round_trips_ms": ()},
        {"round_trips_ms": (-1.0,)},
        {"megabits": ()},
        {"megabits": (-5.0,)},
        {"limit": 0},
        {"repeats": 0},
    ],
)
def test_settings_that_measure_nothing_are_refused(field):
    """Nothing to measure, negative times and widths are configuration errors."""
    with pytest.raises(ConfigurationError):
        LinkSettings(**FIELDS, **field)


def test_every_round_trip_is_measured_at_every_bandwidth():
    """Plain decoding comes first, then all pairs, with names that say what they are."""
    settings = LinkSettings(**FIELDS, round_trips_ms=(0.0, 2.5), megabits=(None, 100.0))
    names = [point.name for point in settings.points]
    assert names == ["plain", "0 ms", "2.5 ms", "0 ms, 100 Mb/s", "2.5 ms, 100 Mb/s"]


def test_numbers_of_the_command_line():
    """Lists separated by commas; anything else is an error that names the option."""
    assert numbers("--x", "0, 1,2.5,") == (0.0, 1.0, 2.5)
    with pytest.raises(ConfigurationError, match="--x takes numbers"):
        numbers("--x", "1;2")


class _Verifier:
    """Says how the link was set when it was asked, and lets a hundred bytes travel each time."""

    def __init__(self, link):
        self.link, self.asked = link, []

    async def generate(self, prompt, max_tokens, *, speculative):
        link = self.link
        self.asked.append((prompt, link.round_trip, link.bytes_per_second, speculative))
        link.outward.carried += 60
        link.homeward.carried += 40
        return Generation((1, 2, 3, 4), 0.5, 0.1, Speculation(4, 3, 6, 3)), None


async def test_a_point_sets_the_link_and_lets_it_settle():
    """The link is what the point says before anything is asked; the first answer does not count."""
    link = Link()
    verifier, taken = _Verifier(link), _Taken([])
    prompts = [Prompt("1", "qa", (5,)), Prompt("2", "rag", (6,))]
    await _take(verifier, link, FAR, prompts, 0, 16, taken)
    assert verifier.asked == [(p, 0.02, 12.5e6, True) for p in ((5,), (5,), (6,))]
    assert [sample.question_id for sample in taken.samples] == ["1", "2"]
    assert taken.carried == 200
    await _take(verifier, link, PLAIN, prompts, 0, 16, taken)
    assert verifier.asked[-1][-1] is False


@pytest.fixture
def results(sample):
    def taken(point, seconds, first=0):
        samples = [
            sample(point.name, question=name, tokens=12, seconds=seconds, first_id=start)
            for name, start in (("1", 0), ("2", first))
        ]
        return _Taken(samples, carried=240)

    return _results({PLAIN: taken(PLAIN, 3.0), NEAR: taken(NEAR, 1.5), FAR: taken(FAR, 2.0, 7)})


def test_speed_is_told_beside_plain_decoding(results):
    """Ratios are to plain; bytes are by token; answers that plain decoding does not give count."""
    assert [result.ratio for result in results] == pytest.approx([1.0, 2.0, 1.5])
    assert [result.differing for result in results] == [0, 0, 1]
    assert {result.bytes_per_token for result in results} == {10.0}


def test_table_json_and_picture(results, tmp_path):
    """All three hold every point."""
    content = document(results, LinkSettings(**FIELDS))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert [(p["round_trip_ms"], p["megabits_per_second"]) for p in content["points"]] == [
        (0.0, None),
        (0.0, None),
        (20.0, 100.0),
    ]
    assert table(results).row_count == 3
    pytest.importorskip("matplotlib")
    draw(tmp_path / "link.png", results)
    assert (tmp_path / "link.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_real_services_over_a_link(tiny_model_dir, tmp_path):
    """Verifier and drafter talk through the link alone, keys and values included, and no link
    changes a token."""
    settings = LinkSettings(
        questions=DEFAULT_QUESTIONS,
        model=tiny_model_dir,
        model_name="tiny",
        out=tmp_path / "link.json",
        round_trips_ms=(0.0, 20.0),
        limit=2,
        # On a busy machine 24 are made before the drafter has the prompt's keys and values.
        max_tokens=120,
        repeats=1,
        exactness="strict",
    )
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        plain, near, far = runner.run(measure_links(settings, lambda line: None))
    assert [result.differing for result in (plain, near, far)] == [0, 0, 0]
    # Keys and values of the prompts: two layers' worth at least.
    prompt_bytes = 2 * 2 * 2 * 16 * 2 * 40
    assert near.bytes_per_token * near.row.generated_tokens > prompt_bytes
    assert plain.bytes_per_token < 20
