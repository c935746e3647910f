"""Every family's logits, out of packed ragged batches, are those of `transformers`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from tests.golden.families import FAMILIES, VOCAB, reference_logits, reference_model
from tests.golden.ragged import fragmented, run_ragged

FamilyDir = Callable[[str], Path]
KV_BYTES = 4 << 20
LENGTHS = (1, 7, 16, 45, 83, 120)


def _sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in LENGTHS]


@functools.cache
def _reference(folder: Path, dtype: torch.dtype) -> list[torch.Tensor]:
    """The library's logits of each sequence, the same for all tests of a family."""
    model = reference_model(folder, dtype)
    return [reference_logits(model, tokens) for tokens in _sequences()]


def _run(folder: Path, dtype: str, optimized: bool, scattered: bool) -> list[torch.Tensor]:
    runner = ModelRunner(load_model(folder, dtype=dtype, optimized=optimized), KV_BYTES)
    sequences = _sequences()
    if scattered:
        fragmented(runner, holes=sum(runner.pool.blocks_for(len(s)) for s in sequences))
    tables = [runner.pool.allocate(len(s)) for s in sequences]
    kept = [table for table in tables if table is not None]
    assert (kept[-1].start is None) == scattered
    return run_ragged(runner, sequences, seed=6, tables=kept)


@pytest.mark.parametrize("scattered", [False, True], ids=["contiguous", "scattered"])
@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_logits_are_the_reference(
    family: str, optimized: bool, scattered: bool, family_dir: FamilyDir
) -> None:
    """Chunks, decode rows, rejected rows and neighbours change no logit beyond rounding."""
    folder = family_dir(family)
    got = _run(folder, "float32", optimized, scattered)
    for theirs, ours in zip(_reference(folder, torch.float32), got, strict=True):
        assert theirs.std() > 0.5, "logits too flat to tell models apart"
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)
        assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("scattered", [False, True], ids=["contiguous", "scattered"])
@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_rounds_no_worse_than_the_library(
    family: str, optimized: bool, scattered: bool, family_dir: FamilyDir
) -> None:
    """Distance from the float32 logits is at most 1.5 times that of the library's bfloat16."""
    folder = family_dir(family)
    truth, theirs = (
        torch.cat(_reference(folder, dtype)) for dtype in (torch.float32, torch.bfloat16)
    )
    ours = torch.cat(_run(folder, "bfloat16", optimized, scattered))
    assert (ours - truth).norm() < 1.5 * (theirs - truth).norm()
    assert (ours - truth).norm() < 0.2 * truth.norm()
