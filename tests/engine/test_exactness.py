"""Strict shapes: bitwise the same logits in any company, and no promise where there are none."""

from __future__ import annotations

import random
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from pathlib import Path

import pytest
import torch

from slipstream.core.errors import ConfigurationError
from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.exactness import MAX_STRICT_ROWS, Shapes, choose_shapes, strict_shapes
from slipstream.engine.kv_pool import BlockTable
from slipstream.engine.runner import ModelRunner
from tests.golden.families import build
from tests.golden.ragged import fragmented

TAIL = 12


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class _Drifting(ModelRunner):
    """Never gives the same logits twice, as a kernel that adds up in the order of arrival."""

    def forward(self, segments: Seq[Segment], hidden: torch.Tensor | None = None) -> torch.Tensor:
        self.drift = getattr(self, "drift", 0.0) + 2**-4
        return super().forward(segments, hidden) + self.drift


class _Perturbed(ModelRunner):
    """Rounds differently in batches of fewer than `enough` rows, as kernels do."""

    enough = 0

    def forward(self, segments: Seq[Segment], hidden: torch.Tensor | None = None) -> torch.Tensor:
        logits = super().forward(segments, hidden)
        rows = max(self.min_rows, sum(len(s.tokens) for s in segments))
        return logits + rows * 2**-4 if rows < self.enough else logits


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3", tmp_path_factory.mktemp("qwen3"))


def _perturbed(folder: Path, enough: int) -> _Perturbed:
    runner = _Perturbed(load_model(folder, dtype="bfloat16"), 2 << 20)
    runner.enough = enough
    return runner


def test_a_model_that_is_never_the_same_is_refused(tiny: Path) -> None:
    """Where no padding helps, strict raises instead of promising, and gives the pool back."""
    runner = _Drifting(load_model(tiny, dtype="bfloat16"), 2 << 20)
    assert strict_shapes(runner) is None
    with pytest.raises(ConfigurationError, match="use exactness fast"):
        choose_shapes(runner, "strict")
    assert runner.pool.num_used == 0


def test_padding_grows_until_it_helps(tiny: Path) -> None:
    """A model that rounds alike from 16 rows on is padded to 16 or more, never to fewer."""
    runner = _perturbed(tiny, 16)
    _, shapes = choose_shapes(runner, "strict")
    assert 16 <= shapes.min_rows <= MAX_STRICT_ROWS
    assert (runner.min_rows, runner.query_multiple) == (shapes.min_rows, shapes.query_multiple)
    assert runner.pool.num_used == 0


def test_candidates_that_are_too_small_are_detected(tiny: Path) -> None:
    """The probe refuses each padding that is too small for the model, one by one."""
    runner = _perturbed(tiny, 8)
    for rows in (1, 4):
        assert strict_shapes(runner, [Shapes(rows, 1)]) is None
    assert strict_shapes(runner, [Shapes(8, 1), Shapes(8, 8), Shapes(32, 32)]) is not None


def test_auto_never_calls_strict_what_is_not(tiny: Path) -> None:
    """Where only an expensive padding is exact, auto settles for fast and says so."""
    runner = _perturbed(tiny, 16)
    exactness, shapes = choose_shapes(runner, "auto")
    assert exactness == "fast"
    assert runner.min_rows == shapes.min_rows <= 4
    assert runner.pool.num_used == 0


def test_a_pool_too_small_to_probe_says_so(tiny: Path) -> None:
    """Strict needs room for its probe; without it the error names the pool."""
    loaded = load_model(tiny, dtype="bfloat16")
    with pytest.raises(ConfigurationError, match="KV pool"):
        choose_shapes(ModelRunner(loaded, 64 << 10), "strict")


class _Company:
    """One sequence under test among others that change from run to run."""

    def __init__(self, runner: ModelRunner, context: int, rng: random.Random) -> None:
        vocab = runner.loaded.config.vocab_size
        self.runner, self.context, self.rng = runner, context, rng
        self.mine = [rng.randrange(vocab) for _ in range(context + TAIL)]
        self.others = [[rng.randrange(vocab) for _ in range(64)] for _ in range(6)]

    def _place(self, tokens: list[int]) -> BlockTable:
        table = self.runner.pool.allocate(len(tokens))
        assert table is not None
        return table

    def tail(self, alone: bool) -> torch.Tensor:
        """Logits of the last TAIL positions, row by row alone, or in random widths and company."""
        runner, rng = self.runner, self.rng
        table = self._place(self.mine)
        others = [(tokens, self._place(tokens)) for tokens in self.others]
        # Prompts in the canonical way: alone, in chunks whose borders depend on position alone.
        for tokens, place, end in [
            (self.mine, table, self.context),
            *((t, p, 30) for t, p in others),
        ]:
            for start in range(0, end, 256):
                runner.forward([Segment(tokens[start : min(end, start + 256)], start, place, 0)])
        done, rows = self.context, []
        while done < len(self.mine):
            width = 1 if alone else min(len(self.mine) - done, rng.choice([1, 2, 3, 6, 9]))
            batch = [Segment(self.mine[done : done + width], done, table, width)]
            budget = MAX_STRICT_ROWS - width
            for tokens, place in [] if alone else rng.sample(others, rng.randint(0, len(others))):
                count = min(budget, rng.choice([1, 1, 4, 8]))
                if count:
                    batch.insert(
                        rng.randint(0, len(batch)),
                        Segment(tokens[30 : 30 + count], 30, place, count),
                    )
                    budget -= count
            logits = runner.forward(batch)
            at = 0
            for segment in batch:
                if segment.table is table:
                    rows.append(logits[at : at + width].clone())
                at += segment.num_logits
            done += width
        for place in (table, *(p for _, p in others)):
            runner.pool.release(place)
        return torch.cat(rows)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_strict_is_bitwise_on_the_real_model(model_dir: Path) -> None:
    """Random widths, neighbours and memory layouts change no bit of what plain decoding gives."""
    rng = random.Random(1)
    runner = ModelRunner(load_model(model_dir, dtype="bfloat16"), 64 << 20)
    try:
        choose_shapes(runner, "strict")
    except ConfigurationError:
        pytest.skip("this machine has no exact shapes for the model, and says so at start")
    for context in (40, 600):
        company = _Company(runner, context, rng)
        plain = company.tail(alone=True)
        assert torch.equal(plain, company.tail(alone=False)), f"context {context}"
        kept = fragmented(runner, holes=100)
        assert torch.equal(plain, company.tail(alone=False)), f"context {context}, scattered"
        for table in kept:
            runner.pool.release(table)
