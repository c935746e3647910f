"""The runner at its edges: what an earlier owner left, ties, padding and the order of segments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from slipstream.core.errors import InternalError
from slipstream.core.params import SamplingParams
from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.draws import Draws
from slipstream.engine.kv_pool import SCRATCH_SLOT
from slipstream.engine.reductions import argmax_bf16
from slipstream.engine.runner import ModelRunner
from slipstream.engine.sequence import Sequence
from tests.golden.families import VOCAB, build
from tests.golden.ragged import fragmented

TOKENS = list(range(5, 55))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(params=["float32", "bfloat16"])
def runner(folder: Path, request: pytest.FixtureRequest) -> ModelRunner:
    return ModelRunner(load_model(folder, dtype=request.param), 1 << 20)


def _logits(runner: ModelRunner, chunks: tuple[int, ...]) -> torch.Tensor:
    """Logits of TOKENS, fed in chunks of these sizes, on fresh room that is given back."""
    table = runner.pool.allocate(len(TOKENS))
    assert table is not None
    at, rows = 0, []
    for count in chunks:
        segment = Segment(TOKENS[at : at + count], at, table, count)
        rows.append(runner.forward([segment]).float().clone())
        at += count
    runner.pool.release(table)
    assert at == len(TOKENS)
    return torch.cat(rows)


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("left", [float("nan"), float("inf"), -1e30])
def test_what_an_earlier_owner_left_reaches_nobody(
    runner: ModelRunner, left: float, scattered: bool
) -> None:
    """With the pool full of NaN, infinity or rubbish, the logits are bitwise those of before."""
    chunks = (17, 1, 4, 1, 27)
    clean = _logits(runner, chunks)
    for layer in (*runner.pool.keys, *runner.pool.values):
        layer[SCRATCH_SLOT + 16 :] = left
    if scattered:
        fragmented(runner, holes=runner.pool.blocks_for(len(TOKENS)))
        torch.testing.assert_close(_logits(runner, chunks), clean, rtol=0.02, atol=0.05)
    else:
        assert torch.equal(_logits(runner, chunks), clean)


@pytest.mark.parametrize("min_rows", [1, 4, 32])
@pytest.mark.parametrize("query_multiple", [1, 8])
def test_padding_is_invisible(runner: ModelRunner, min_rows: int, query_multiple: int) -> None:
    """Padded batches give one row of logits per row wanted, and the same ones up to rounding."""
    plain = _logits(runner, (30, *[1] * 20))
    runner.min_rows, runner.query_multiple = min_rows, query_multiple
    padded = _logits(runner, (30, *[1] * 20))
    assert padded.shape == (len(TOKENS), VOCAB)
    torch.testing.assert_close(padded, plain, rtol=0.02, atol=0.05)


def test_logits_come_in_the_order_of_the_segments(runner: ModelRunner) -> None:
    """Wanted rows of each segment in turn; a segment that wants none adds none."""
    alone = _logits(runner, (50,))
    tables = [runner.pool.allocate(50) for _ in range(3)]
    a, b, c = [table for table in tables if table is not None]
    batch = [Segment(TOKENS[:20], 0, a, 3), Segment(TOKENS[:7], 0, b, 0), Segment(TOKENS, 0, c, 2)]
    got = runner.forward(batch).float()
    wanted = torch.cat((alone[17:20], alone[48:50]))
    torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.05)
    assert runner.forward([Segment(TOKENS[7:9], 7, b, 0)]).shape == (0, VOCAB)


def _sequence(**params: float) -> Sequence:
    return Sequence([3, 4], 2, SamplingParams(temperature=0.0, **params), "m")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_go_to_the_lowest_token_by_either_way(dtype: torch.dtype) -> None:
    """The argmax of all rows at once and the rule row by row settle ties alike, in any width."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-4, 4, (40, 1000), generator=generator).to(dtype)
    draws, slow = Draws(logits), _sequence(presence_penalty=0.5)
    for row in range(40):
        fast = draws.token(row, _sequence())
        assert fast == int((logits[row] == logits[row].max()).nonzero()[0])
        assert draws.token(row, slow) == fast


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_fail_their_row_alone(bad: float) -> None:
    """One row with a NaN or an infinity raises; its neighbours are drawn as usual."""
    logits = torch.zeros(3, 10)
    logits[:, 6] = 1.0
    logits[1, 2] = bad
    draws = Draws(logits)
    assert draws.token(0, _sequence()) == draws.token(2, _sequence()) == 6
    with pytest.raises(InternalError, match="finite"):
        draws.token(1, _sequence())


@pytest.mark.parametrize("size", [1, 3, 511, 512, 513, 2000])
def test_the_compiled_argmax_is_numpys(size: int) -> None:
    """Over any bfloat16 bits: the first maximum, either zero, and the first that is no number."""
    rng = np.random.default_rng(size)
    wild = rng.integers(-(2**15), 2**15, (200, size)).astype(np.int16)
    few = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan], np.float32)
    for most in range(1, len(few) + 1):
        floats = torch.from_numpy(rng.choice(few[:most], (200, size))).bfloat16()
        for bits in (wild, floats.view(torch.int16).numpy()):
            wanted = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
            argmax, finite = np.empty(200, np.int64), np.empty(200, np.bool_)
            argmax_bf16(bits, argmax, finite)
            assert (argmax == wanted.argmax(-1)).all()
            best = np.take_along_axis(wanted, argmax[:, None], axis=1)[:, 0]
            assert (finite == np.isfinite(best)).all()


def test_minus_infinity_is_an_ordinary_logit() -> None:
    """A model may rule tokens out; they are never drawn, at any temperature."""
    logits = torch.full((1, 10), float("-inf"))
    logits[0, 7] = -3.0
    for temperature in (0.0, 1.0, 100.0):
        sequence = Sequence([3], 1, SamplingParams(temperature=temperature), "m")
        assert Draws(logits).token(0, sequence) == 7


def test_rollback_forgets_everything() -> None:
    """Tokens, names, counts and the computed length are those of a sequence that never had them."""
    params = SamplingParams(seed=5, frequency_penalty=1.5, presence_penalty=0.5)
    fresh, used = (Sequence([3, 4, 4], 3, params, "m") for _ in range(2))
    for token in (9, 9, 4, 8):
        used.append(token)
    fresh.append(9)
    used.computed = 6
    used.rollback(4)
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)).numpy()
    assert used.tokens == fresh.tokens == [3, 4, 4, 9]
    assert (len(used), used.computed, used.todo) == (4, 4, 0)
    assert used.chain.at(4) == fresh.chain.at(4)
    for _ in range(6):
        token = fresh.draw(logits)
        assert used.draw(logits) == token
        fresh.append(token)
        used.append(token)
