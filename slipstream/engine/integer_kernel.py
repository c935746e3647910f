"""Products of 4- or 8-bit weights and activations in the CPU's integer dot product instructions.

The usual way to multiply by 4-bit weights, expanding them to floats, takes longer than reading
them. Here both sides stay integers: weights are q * scale + low in groups of 32 inputs, and
activations are rounded in the same groups with a scale each (as in llama.cpp's Q4_1 by Q8_1
products), so that a group is eight `vpdpbusd` instructions over 16 outputs. Activations have 8
bits, or 16 as a high and a low byte: for few rows the time is that of reading the weights, which
leaves room for the second byte. A row's result then depends on how many rows there are, which a
drafter may afford and a verifier may not, so a layer can also fix the bits for any number of rows.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from llvmlite import binding
from numba import carray, cfunc, njit

from slipstream.engine.integer_tiles import (
    GROUP,
    LOW_UNIT,
    QUADS,
    SCALE_BYTES,
    TILE,
    group_bytes,
    tile,
)
from slipstream.engine.kernels import OPTIONS, as_f32, as_i8, as_i64, as_u16, load_bf16
from slipstream.engine.team import entry, keep, next_piece, run

# Up to this many rows the second byte of the activations costs nothing.
_PRECISE_ROWS = 4


@functools.cache
def available() -> bool:
    """Whether this CPU has the instruction (AVX-512 VNNI)."""
    features = binding.get_host_cpu_features()
    return bool(features.get("avx512vnni") and features.get("avx512bw"))


@njit("void(int64,int64,int64,int64,int64,int64)", **OPTIONS)
def _quantize(x: int, out: int, scales: int, rows: int, groups: int, parts: int) -> None:
    """bfloat16 [rows, groups * GROUP] to int8 [rows, parts, groups * GROUP], and per group its
    scale and the scale times the sum."""
    inputs = groups * GROUP
    for i in range(rows * groups):
        r, g = i // groups, i % groups
        values = carray(as_u16(x + 2 * GROUP * i), (GROUP,))
        high = carray(as_i8(out + r * parts * inputs + g * GROUP), (GROUP,))
        low = carray(as_i8(out + ((r + 1) * parts - 1) * inputs + g * GROUP), (GROUP,))
        pair = carray(as_f32(scales + 8 * i), (2,))
        most = np.float32(1e-12)
        for k in range(GROUP):
            v = abs(load_bf16(values[k]))
            most = max(most, v)
        inverse = np.float32(127.0) / most
        total = np.float32(0.0)
        for k in range(GROUP):
            scaled = load_bf16(values[k]) * inverse
            # Offset to positive numbers: a cast to integer cuts towards zero.
            q = np.int32(scaled + np.float32(128.5)) - np.int32(128)
            high[k] = np.int8(q)
            total += np.float32(q)
        if parts == 2:
            for k in range(GROUP):
                rest = load_bf16(values[k]) * inverse - np.float32(high[k])
                q = np.int32(rest * np.float32(254.0) + np.float32(128.5)) - np.int32(128)
                low[k] = np.int8(q)
                total += np.float32(q) * np.float32(LOW_UNIT)
        pair[0] = most / np.float32(127.0)
        pair[1] = pair[0] * total


# Slots of a job (see `team`) behind the counter and the number of pieces.
_JOB = 12
# Pieces for each thread: enough that a slower one does not hold up the rest.
_PIECES = 4
# Fewer bytes of weights are read sooner than a team is called.
_TEAM_BYTES = 1 << 16


@functools.cache
def _worker(bits: int, parts: int) -> Any:
    """A worker (see `team`) whose pieces are runs of tiles, for all rows."""
    tile_bytes = group_bytes(bits)

    @cfunc("void(int64)", **{**OPTIONS, "nogil": False})
    def worker(at: int) -> None:
        job = carray(as_i64(at), (_JOB,))
        pieces, rows, tiles, groups = job[1], job[2], job[3], job[4]
        weights, scales, x, x_scales, out = job[5], job[6], job[7], job[8], job[9]
        outputs, row_bytes = tiles * TILE, parts * groups * GROUP
        while True:
            piece = next_piece(at)
            if piece >= pieces:
                return
            for t in range(tiles * piece // pieces, tiles * (piece + 1) // pieces):
                w = weights + t * groups * tile_bytes
                s = scales + t * groups * SCALE_BYTES
                r = 0
                while r < rows:
                    x_at, scales_at = x + r * row_bytes, x_scales + 8 * r * groups
                    into = out + 2 * (r * outputs + t * TILE)
                    left = rows - r
                    if left >= 8:
                        tile(8, bits, parts, w, s, x_at, scales_at, into, groups, outputs)
                        r += 8
                    elif left >= 4:
                        tile(4, bits, parts, w, s, x_at, scales_at, into, groups, outputs)
                        r += 4
                    elif left >= 2:
                        tile(2, bits, parts, w, s, x_at, scales_at, into, groups, outputs)
                        r += 2
                    else:
                        tile(1, bits, parts, w, s, x_at, scales_at, into, groups, outputs)
                        r += 1

    return worker


# Numbers of a product: weights, scales, groups of inputs, tiles of outputs, bits of the weights;
# then worker and parts of activations for few and for many rows.
PRODUCT = 9


@njit("void(" + ",".join(["int64"] * 6) + ")", **OPTIONS)
def multiply_rows(entry: int, threads: int, product: int, x: int, out: int, rows: int) -> None:
    """`multiply`, for compiled callers. `product` is the address of what `describe` gives.

    Quantizes x, then has the worker go through the tiles, on a team where there is enough.
    """
    numbers = carray(as_i64(product), (PRODUCT,))
    weights, scales, groups, tiles, bits = (
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4],
    )  # fmt: skip
    at = 5 if rows <= _PRECISE_ROWS else 7
    worker, parts = numbers[at], numbers[at + 1]
    quantized = np.empty(rows * parts * groups * GROUP, np.int8)
    x_scales = np.empty(rows * groups * 2, np.float32)
    _quantize(x, quantized.ctypes.data, x_scales.ctypes.data, rows, groups, parts)
    job = np.empty(_JOB, np.int64)
    job[0], job[2], job[3], job[4] = 0, rows, tiles, groups
    job[5], job[6], job[7] = weights, scales, quantized.ctypes.data
    job[8], job[9] = x_scales.ctypes.data, out
    if tiles * groups * TILE * GROUP * bits // 8 < _TEAM_BYTES:
        threads = 1
    job[1] = min(tiles, threads * _PIECES) if threads > 1 else 1
    run(entry, worker, job.ctypes.data, threads)
    keep(quantized)
    keep(x_scales)
    keep(job)


def pack(
    q: torch.Tensor, scale: torch.Tensor, low: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lays weights out for `multiply`.

    Args:
        q: int [out, in] in 0 to 2**bits - 1, bits 4 or 8; scale, low: [out, in / GROUP];
            w = q * scale + low. `out` is a multiple of TILE, `in` of GROUP.

    Returns:
        uint8 [out * in * bits / 8]: by tile of 16 outputs, group and vector of 64 bytes. Byte k of
        vector j is input 4 j + k % 4 of output k / 4; with 4 bits the high half holds the input
        16 further on. And bfloat16 [out * in / GROUP * 2]: by tile and group 16 scales, 16 lows.
    """
    outputs, inputs = q.shape
    tiles, groups = outputs // TILE, inputs // GROUP
    codes = q.to(torch.uint8)
    if bits == 4:
        # [tile, output, group, half, vector, byte] to [tile, group, vector, output, byte, half]
        halves = codes.view(tiles, TILE, groups, 2, QUADS // 2, 4).permute(0, 2, 4, 1, 5, 3)
        weights = halves[..., 0] | halves[..., 1] << 4
    else:
        weights = codes.view(tiles, TILE, groups, QUADS, 4).permute(0, 2, 3, 1, 4)
    pairs = torch.stack((scale, low), dim=0).to(torch.bfloat16)
    pairs = pairs.view(2, tiles, TILE, groups).permute(1, 3, 0, 2)
    return weights.reshape(-1).contiguous(), pairs.reshape(-1).contiguous()


def _parts(rows: int, activation_bits: int | None) -> int:
    if activation_bits is None:
        return 2 if rows <= _PRECISE_ROWS else 1
    return activation_bits // 8


def describe(
    weights: torch.Tensor,
    scales: torch.Tensor,
    outputs: int,
    inputs: int,
    bits: int,
    activation_bits: int | None = None,
) -> list[int]:
    """The numbers of a product whose weights `pack` laid out; they must outlive it.

    Compiles what multiplying will call, so that no request waits for it.

    Args:
        activation_bits: what x is rounded to, 8 or 16; then every row is bitwise the same whatever
            the number of rows. None takes 16 for up to four rows and 8 for more.
    """
    numbers = [weights.data_ptr(), scales.data_ptr(), inputs // GROUP, outputs // TILE, bits]
    for rows in (1, _PRECISE_ROWS + 1):
        parts = _parts(rows, activation_bits)
        numbers += [_worker(bits, parts).address, parts]
    return numbers


def multiply(x: torch.Tensor, product: torch.Tensor, outputs: int) -> torch.Tensor:
    """x @ w.T for the product that `describe` describes.

    Args:
        x: bfloat16 [rows, in], contiguous.
        product: int64 [PRODUCT].

    Returns:
        bfloat16 [rows, outputs].
    """
    rows = x.shape[0]
    out = torch.empty((rows, outputs), dtype=torch.bfloat16)
    multiply_rows(
        entry(), torch.get_num_threads(), product.data_ptr(), x.data_ptr(), out.data_ptr(), rows
    )
    return out
