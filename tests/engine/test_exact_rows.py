"""Up to how many rows results are exact: measured, and never too much."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path

import pytest
import torch

from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.exact_rows import max_exact_rows
from slipstream.engine.exactness import MAX_STRICT_ROWS, Shapes, choose_shapes, strict_shapes
from slipstream.engine.runner import ModelRunner

FEW = MAX_STRICT_ROWS


class _Kernels(ModelRunner):
    """Exact but for steps of more than `most` rows, up to `last`, as if other kernels took those.

    What they round differently: logits, or the value of the first row that they put into the pool,
    and only behind `behind` positions or more, and with `threads` threads where that is not 0.
    """

    most, last, behind, what, threads = 10**6, 10**6, 0, "logits", 0

    def forward(self, segments: Seq[Segment], hidden: torch.Tensor | None = None) -> torch.Tensor:
        made = super().forward(segments, hidden)
        deep = max(s.kv_length for s in segments) > self.behind
        meant = self.threads in {0, torch.get_num_threads()}
        if deep and meant and self.most < sum(len(s.tokens) for s in segments) <= self.last:
            if self.what == "logits":
                return made + 2**-4
            last = segments[-1]
            self.pool.values[-1][last.table.slots[last.position]] += 2**-4
        return made


@pytest.fixture(scope="module")
def honest(tiny_model_dir: Path) -> Iterator[_Kernels]:
    """As exact as can be: a step is padded to what its rows need to agree."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = _Kernels(load_model(tiny_model_dir, dtype="bfloat16"), 8 << 20)
    choose_shapes(made, "strict")
    yield made
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exact_rows(honest: _Kernels) -> Callable[[Seq[int]], int]:
    """The most rows that agree, by the sizes that are tried, with the machine's own kernels."""
    return functools.cache(lambda sizes: max_exact_rows(honest, FEW, sizes))


@pytest.fixture
def runner(honest: _Kernels) -> Iterator[_Kernels]:
    """The same model, shapes and kernels, for one test to make worse."""
    made = _Kernels(honest.loaded, 8 << 20)
    made.min_rows, made.query_multiple = honest.min_rows, honest.query_multiple
    yield made
    assert made.pool.num_used == 0


@pytest.mark.parametrize("what", ["logits", "values"])
@pytest.mark.parametrize(
    ("most", "sizes", "expected"),
    [
        (300, (64, 128), None),
        (255, (64, 128, 256), 128),
        (100, (64, 128), 64),
        (63, (64, 128), FEW),
        (31, (64, 128), 0),
    ],
)
def test_no_more_rows_than_agree(runner, exact_rows, most, sizes, expected, what) -> None:
    """Kernels that round differently from some number of rows on set the bound below it."""
    exact = exact_rows(sizes)
    runner.most, runner.what = most, what
    found = max_exact_rows(runner, FEW, sizes)
    assert found == (exact if expected is None else min(exact, expected))


@pytest.mark.parametrize("what", ["logits", "values"])
@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(9, 11, 0), (2, 2, 0), (19, 19, 0), (FEW - 1, FEW - 1, 0), (123, 123, 64), (127, 127, 64)],
)
def test_some_numbers_of_rows_alone_may_differ(
    runner, exact_rows, first, last, expected, what
) -> None:
    """A kernel that rounds differently for a few numbers of rows, and like the others below and
    above them: looked at is every number of few rows, and odd ones near the most."""
    exact = exact_rows((64, 128))
    runner.most, runner.last, runner.what = first - 1, last, what
    assert max_exact_rows(runner, FEW, (64, 128)) == min(exact, expected)


def test_long_contexts_are_looked_at(runner) -> None:
    """Few rows that differ from one only behind more keys than a tile has are no strict shape."""
    runner.most, runner.behind = 3, 512
    assert max_exact_rows(runner, FEW) == 0


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_number_of_threads_is_looked_at(runner, exact_rows, monkeypatch, threads) -> None:
    """Where any number of threads that a process of eight may come to have rounds differently, its
    shapes are not exact."""
    exact = exact_rows((64,))
    if exact == FEW:
        pytest.skip("large steps do not agree here")
    now = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    assert max_exact_rows(runner, FEW, (64,)) == exact
    runner.most, runner.threads = 0, threads
    assert max_exact_rows(runner, FEW, (64,)) == FEW
    assert strict_shapes(runner, [Shapes(runner.min_rows, runner.query_multiple)]) is None
    assert now[-1] == 8


def test_a_pool_without_room_promises_nothing(tiny_model_dir: Path) -> None:
    """The widest steps are not vouched for where a long context leaves no room to try them."""
    runner = ModelRunner(load_model(tiny_model_dir, dtype="bfloat16"), 8 << 20)
    table = runner.pool.allocate((runner.pool.num_blocks - 20) * 16)
    assert table is not None
    assert max_exact_rows(runner, FEW) in {FEW, 64, 128}
    runner.pool.release(table)
    assert runner.pool.num_used == 0
