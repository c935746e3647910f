"""`slipstream bench shards`: made-up models, what the figures mean, and a whole run."""

from __future__ import annotations

import json
from math import prod

import pytest
from rich.console import Console
from typer.testing import CliRunner

from slipstream.bench.machine import Memory
from slipstream.bench.shards import Held, MemoryOfShards, ShardsSettings
from slipstream.bench.shards_report import largest, share, table
from slipstream.bench.synthetic import SMALLEST, shape_of, write_model
from slipstream.cli.bench import app
from slipstream.core.errors import ConfigurationError
from slipstream.engine.model_files import WeightFiles


@pytest.mark.parametrize(
    ("size", "parameters"), [("20m", 20e6), ("1.5b", 1.5e9), ("70B", 70e9), ("900b", 900e9)]
)
def test_shapes(size, parameters) -> None:
    """About as many parameters as asked for, and neither a needle nor a pancake."""
    shape = shape_of(size)
    assert shape.parameters == pytest.approx(parameters, rel=0.05)
    assert 4 <= shape.layers <= 256
    assert shape.hidden % 256 == 0


@pytest.mark.parametrize("size", ["", "big", "1.5t", "-1b", "10k", "1m", "9000b"])
def test_sizes_that_no_model_has(size) -> None:
    """What is no number, or too small or too large for a shape, is refused."""
    with pytest.raises(ConfigurationError):
        shape_of(size)


def test_a_written_model_has_its_parameters(tmp_path) -> None:
    """The tensors on disk are as many numbers as the shape says."""
    write_model(tmp_path, SMALLEST)
    with WeightFiles(tmp_path) as files:
        assert sum(prod(shape) for shape in files.shapes("").values()) == SMALLEST.parameters
    with pytest.raises(ConfigurationError):
        write_model(tmp_path / "config.json", SMALLEST)


def _held(private: int, weights: int) -> Held:
    return Held(Memory(2 * private, private), weights)


def test_figures() -> None:
    """The largest of each kind, over the whole's; the model's part is what is beyond the base."""
    found = MemoryOfShards(
        Memory(500, 300), {1: (_held(700, 380),), 2: (_held(450, 200), _held(500, 180))}
    )
    assert largest(found, 2) == {"resident": 1000, "private": 500, "model": 200, "weights": 200}
    parts = share(found, 2)
    assert parts["private"] == pytest.approx(5 / 7)
    assert parts["model"] == pytest.approx(0.5)
    assert parts["weights"] == pytest.approx(10 / 19)
    nothing = MemoryOfShards(Memory(900, 800), found.drafters)
    assert share(nothing, 2)["model"] is None
    console = Console(width=120, record=True)
    console.print(table(nothing))
    assert "-" in console.export_text()


@pytest.mark.parametrize("counts", [(), (0,), (2, -1)])
def test_counts_that_cannot_be(tmp_path, counts) -> None:
    """No count, or one below 1, is a configuration error."""
    with pytest.raises(ConfigurationError):
        ShardsSettings(tmp_path, "m", tmp_path, counts)


def test_a_whole_run(tmp_path, tiny_model_dir) -> None:
    """Real drafters in one piece and in two: weights of a shard fall, and together they are the
    whole's; memory is that of processes that serve."""
    out = tmp_path / "shards.json"
    words = ["shards", "--model", str(tiny_model_dir), "--counts", "2", "--out", str(out)]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output
    written = json.loads(out.read_text())
    whole, two = written["drafters"]
    assert (whole["shards"], two["shards"]) == (1, 2)
    (one,), pair = whole["processes"], two["processes"]
    assert sum(each["weights"] for each in pair) == one["weights"]
    assert two["share_of_whole"]["weights"] < 0.75
    for each in (one, *pair, written["base_bytes"]):
        assert 10**7 < each["private"] < each["resident"]
