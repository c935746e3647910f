"""The compiled attention: the right numbers, and the same bits in any company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from slipstream.engine import attention_kernel
from slipstream.engine.attention_tiles import has_dot

SLOTS = 320
# The CPU's dot product of pairs where there is one, and what other CPUs run.
DOTS = [False, True] if has_dot() else [False]


@dataclass(frozen=True)
class Geometry:
    heads: int
    kv_heads: int
    dim: int
    window: int | None = None

    def qkv(self, rows: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (rows, self.heads + 2 * self.kv_heads, self.dim)
        return torch.randn(shape, generator=generator).bfloat16()


GEOMETRIES = [
    Geometry(9, 3, 64),
    Geometry(9, 3, 64, window=7),
    Geometry(4, 4, 16),
    Geometry(4, 2, 16, window=40),
    Geometry(4, 1, 20),
    Geometry(2, 2, 32, window=1),
    Geometry(6, 2, 48),
    Geometry(3, 1, 80, window=33),
    Geometry(20, 1, 96),
    Geometry(8, 8, 128),
]


class Sequence:
    """Keys and values of a sequence, scattered over a pool; what it does not own is NaN."""

    def __init__(self, geometry: Geometry, length: int, seed: int, pool: Pool) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.geometry, self.pool, self.length = geometry, pool, length
        self.qkv = geometry.qkv(length, seed)
        angles = torch.randn(length, geometry.dim // 2, generator=generator).repeat(1, 2)
        self.cos, self.sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        self.sin[:, : geometry.dim // 2].neg_()
        self.slots = pool.take(length)

    def rotated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys as float64."""
        g = self.geometry
        x = self.qkv[:, : g.heads + g.kv_heads].double()
        swapped = torch.cat((x[..., g.dim // 2 :], x[..., : g.dim // 2]), -1)
        x = x * self.cos.double()[:, None] + swapped * self.sin.double()[:, None]
        return x[:, : g.heads], x[:, g.heads :]

    def expected(self) -> torch.Tensor:
        """Attention of all positions in float64 over keys and queries in bfloat16."""
        g = self.geometry
        query, key = (x.bfloat16().double() for x in self.rotated())
        value = self.qkv[:, g.heads + g.kv_heads :].double()
        key, value = (x.repeat_interleave(g.heads // g.kv_heads, 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) * g.dim**-0.5
        at = torch.arange(self.length)
        hidden = at[None] > at[:, None]
        if g.window is not None:
            hidden |= at[None] <= at[:, None] - g.window
        shares = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", shares, value)


class Pool:
    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.keys = torch.full((SLOTS, geometry.kv_heads, geometry.dim), float("nan")).bfloat16()
        self.values = self.keys.clone()
        self._free = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(1))

    def take(self, count: int) -> torch.Tensor:
        taken, self._free = self._free[:count].clone(), self._free[count:]
        return taken

    def run(self, parts: list[tuple[Sequence, int, int]], dot: bool) -> list[torch.Tensor]:
        """Runs the rows start to stop of each sequence in one batch."""
        rows, first = [], 0
        for sequence, start, stop in parts:
            rows.append((first, stop - start, start, sequence.slots.data_ptr()))
            first += stop - start
        qkv, cos, sin = (
            torch.cat([getattr(s, name)[start:stop] for s, start, stop in parts])
            for name in ("qkv", "cos", "sin")
        )
        g = self.geometry
        out = torch.full((first, g.heads, g.dim), float("nan")).bfloat16()
        attention_kernel.attend(
            qkv, cos, sin, self.keys.data_ptr(), self.values.data_ptr(), torch.tensor(rows), out,
            heads=g.heads, kv_heads=g.kv_heads, window=g.window, scaling=g.dim**-0.5, dot=dot,
        )  # fmt: skip
        return [out[r[0] : r[0] + r[1]] for r in rows]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _by_steps(sequence: Sequence, widths: list[int], dot: bool) -> torch.Tensor:
    outs, at, i = [], 0, 0
    while at < sequence.length:
        stop = min(sequence.length, at + widths[i % len(widths)])
        outs += sequence.pool.run([(sequence, at, stop)], dot)
        at, i = stop, i + 1
    return torch.cat(outs)


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_it_is_attention(geometry: Geometry, dot: bool) -> None:
    """Every position agrees with float64 to the rounding of the output and of rotated queries."""
    sequence = Sequence(geometry, 83, 0, Pool(geometry))
    out = _by_steps(sequence, [1, 5, 32, 2, 17], dot).double()
    expected = sequence.expected()
    # 2**-8 is half a unit of bfloat16 at most. The kernel may round a rotated number the other way
    # where float64 is near the middle of two: one unit of one of many dimensions of a score.
    assert ((out - expected).abs() <= 2**-8 * expected.abs() + 2e-3).all()
    keys = sequence.pool.keys[sequence.slots].double()
    rotated = sequence.rotated()[1]
    assert ((keys - rotated).abs() <= 2**-8 * rotated.abs() + 1e-6).all()
    values = sequence.pool.values[sequence.slots]
    assert torch.equal(values, sequence.qkv[:, geometry.heads + geometry.kv_heads :])


@pytest.mark.parametrize("dot", DOTS)
def test_nothing_but_the_output_is_rounded(dot: bool) -> None:
    """Without a rotation the only error beyond 1e-5 is that of the output in bfloat16."""
    geometry = Geometry(9, 3, 64)
    sequence = Sequence(geometry, 200, 3, Pool(geometry))
    sequence.cos.fill_(1.0)
    sequence.sin.zero_()
    out, expected = _by_steps(sequence, [7, 16], dot).double(), sequence.expected()
    assert ((out - expected).abs() <= 2**-8 * 1.001 * expected.abs() + 1e-5).all()


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_no_company_changes_a_bit(geometry: Geometry, dot: bool, threads: None) -> None:
    """Rows one at a time, several, among other sequences and on several threads: the same bits."""
    pool = Pool(geometry)
    mine, other = Sequence(geometry, 70, 5, pool), Sequence(geometry, 90, 6, pool)
    torch.set_num_threads(1)
    alone = _by_steps(mine, [1], dot)
    _by_steps(other, [32], dot)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for widths in ([2], [3, 8], [5], [13], [32], [70]):
            assert torch.equal(_by_steps(mine, widths, dot), alone)
        together = pool.run([(other, 7, 20), (mine, 50, 61), (other, 60, 66)], dot)
        assert torch.equal(together[1], alone[50:61])


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("window", [None, 6])
def test_what_a_row_does_not_see_cannot_touch_it(window: int | None, bad: float, dot: bool) -> None:
    """NaN and infinity in later rows and behind the window change no bit of a row; a row that does
    see them becomes NaN."""
    geometry = Geometry(6, 2, 32, window)
    clean = Sequence(geometry, 60, 7, Pool(geometry))
    expected = _by_steps(clean, [60 // 3], dot)
    dirty = Sequence(geometry, 60, 7, Pool(geometry))
    dirty.qkv[33] = bad
    out = _by_steps(dirty, [60 // 3], dot)
    assert torch.equal(out[:33], expected[:33])
    assert out[33].isnan().all()
    if window is None:
        assert out[34:].isnan().all()
    else:
        assert out[34 : 33 + window].isnan().all()
        assert torch.equal(out[33 + window :], expected[33 + window :])
