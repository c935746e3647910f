"""Kernels on a team of threads: the same bits as on one, whatever the team."""

from __future__ import annotations

import pytest
import torch

from slipstream.engine import integer_kernel
from slipstream.engine.linear import quantized_groups
from slipstream.engine.team import entry

pytestmark = pytest.mark.skipif(
    not integer_kernel.available(), reason="this CPU has no integer dot products"
)


@pytest.fixture
def threads():
    """Sets torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _product(rows: int, outputs: int, bits: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(outputs, 576, generator=generator)
    x = torch.randn(rows, 576, generator=generator).bfloat16()
    packed = integer_kernel.pack(*quantized_groups(weight, bits), bits)
    product = torch.tensor(integer_kernel.describe(*packed, outputs, 576, bits))
    return integer_kernel.multiply(x, product, outputs)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 13, 40])
def test_threads_change_no_bit(threads, rows, bits) -> None:
    """Every output is computed once, by one thread: one, two and three threads agree bitwise."""
    threads(1)
    alone = _product(rows, 1536, bits)
    for count in (2, 3):
        threads(count)
        for _ in range(5):
            assert torch.equal(_product(rows, 1536, bits), alone)


def test_fewer_tiles_than_pieces(threads) -> None:
    """A product with hardly a tile for each thread leaves none out and does none twice."""
    threads(1)
    alone = _product(2, 48, 8)
    threads(4)
    assert torch.equal(_product(2, 48, 8), alone)


def test_without_a_team(threads, monkeypatch) -> None:
    """Where torch came with another OpenMP the calling thread does all of it."""
    threads(2)
    expected = _product(5, 1536, 4)
    monkeypatch.setattr(integer_kernel, "entry", lambda: 0)
    assert torch.equal(_product(5, 1536, 4), expected)


@pytest.mark.skipif("openmp" not in torch.__config__.parallel_info().lower(), reason="no OpenMP")
def test_torch_brings_the_team() -> None:
    """The entry point is found in the OpenMP that torch came with."""
    assert entry() != 0
