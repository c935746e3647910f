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
from llvmlite import binding, ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from slipstream.engine.kernels import OPTIONS, as_f32, as_i8, as_i64, as_u16, load_bf16
from slipstream.engine.team import entry, keep, next_piece, run

GROUP = 32
TILE = 16
_QUADS = GROUP // 4
_SCALE_BYTES = 2 * 2 * TILE
# How many bytes before they are multiplied weights are asked for: the processor's own guesses come
# later, which costs one core 6% of its products from memory.
_AHEAD = 2048
# Rows that share one pass over the weights; more go in several.
_ROWS = (1, 2, 4, 8)
# Up to this many rows the second byte of the activations costs nothing.
_PRECISE_ROWS = 4
# The low byte counts 254ths of the high one's unit: it covers half a unit either way.
_LOW_UNIT = 1.0 / 254.0

_I8, _I16, _I32, _I64, _F32 = (
    *(ir.IntType(bits) for bits in (8, 16, 32, 64)),
    ir.FloatType(),
)
_BYTES, _INTS, _FLOATS = (ir.VectorType(kind, n) for kind, n in ((_I8, 64), (_I32, 16), (_F32, 16)))


@functools.cache
def available() -> bool:
    """Whether this CPU has the instruction (AVX-512 VNNI)."""
    features = binding.get_host_cpu_features()
    return bool(features.get("avx512vnni") and features.get("avx512bw"))


def _at(builder: Any, base: Any, offset: Any, kind: Any) -> Any:
    return builder.inttoptr(builder.add(base, offset), kind.as_pointer())


def _declare(module: Any, name: str, kind: Any) -> Any:
    """An instruction that takes three vectors of a kind and gives one."""
    known = module.globals.get(name)
    return known or ir.Function(module, ir.FunctionType(kind, [kind] * 3), name)


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    lone = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, kind.count), None)
    return builder.shuffle_vector(lone, ir.Constant(kind, ir.Undefined), zeros)


def _bf16(builder: Any, address: Any) -> Any:
    """16 bfloat16 numbers at an address, as floats."""
    raw = builder.load(builder.inttoptr(address, ir.VectorType(_I16, TILE).as_pointer()), align=1)
    wide = builder.zext(raw, _INTS)
    shift = ir.Constant(_INTS, [16] * TILE)
    return builder.bitcast(builder.shl(wide, shift), _FLOATS)


def _store_bf16(builder: Any, floats: Any, address: Any) -> None:
    bits = builder.bitcast(floats, _INTS)
    sixteen, one, bias = (ir.Constant(_INTS, [n] * TILE) for n in (16, 1, 0x7FFF))
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    rounded = builder.lshr(builder.add(bits, builder.add(bias, odd)), sixteen)
    half = ir.VectorType(_I16, TILE)
    into = builder.inttoptr(address, half.as_pointer())
    builder.store(builder.trunc(rounded, half), into, align=1)


def _group_bytes(bits: int) -> int:
    return TILE * GROUP * bits // 8


def _load_quads(builder: Any, base: Any, bits: int) -> list[Any]:
    """The weights of a group: vector j holds inputs 4 j to 4 j + 3 of each of 16 outputs."""
    offsets = [ir.Constant(_I64, 64 * j) for j in range(_QUADS * bits // 8)]
    loaded = [builder.load(_at(builder, base, at, _BYTES), align=1) for at in offsets]
    if bits == 4:
        low, four = (ir.Constant(_BYTES, [n] * 64) for n in (15, 4))
        halves = [builder.and_(both, low) for both in loaded]
        loaded = halves + [builder.lshr(both, four) for both in loaded]
    return [builder.bitcast(vector, _INTS) for vector in loaded]


def _prefetch(builder: Any, address: Any, count: int) -> None:
    """Asks for the cache lines of `count` bytes from an address on, which need not be valid."""
    pointer = _I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
    name = "llvm.prefetch.p0i8"
    prefetch = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    # To read, into all caches, data.
    how = [ir.Constant(_I32, n) for n in (0, 3, 1)]
    for line in range(0, count, 64):
        builder.call(prefetch, [_at(builder, address, ir.Constant(_I64, line), _I8), *how])


def _generate_tile(rows: int, bits: int, parts: int) -> Any:
    """Code for 16 outputs of `rows` rows; see `_tile`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, scales, x, x_scales, out, groups, out_stride = arguments
        module = builder.module
        dot = _declare(module, "llvm.x86.avx512.vpdpbusd.512", _INTS)
        fma = _declare(module, "llvm.fma.v16f32", _FLOATS)
        c64 = functools.partial(ir.Constant, _I64)
        entry = builder.block
        loop = builder.append_basic_block("groups")
        done = builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        g = builder.phi(_I64)
        sums = [builder.phi(_FLOATS) for _ in range(rows)]
        g.add_incoming(c64(0), entry)
        for total in sums:
            total.add_incoming(ir.Constant(_FLOATS, None), entry)

        base = builder.add(weights, builder.mul(g, c64(_group_bytes(bits))))
        _prefetch(builder, builder.add(base, c64(_AHEAD)), _group_bytes(bits))
        quads = _load_quads(builder, base, bits)
        pair = builder.add(scales, builder.mul(g, c64(_SCALE_BYTES)))
        ahead = _AHEAD * _SCALE_BYTES // _group_bytes(bits)
        _prefetch(builder, builder.add(pair, c64(ahead)), _SCALE_BYTES)
        scale, least = _bf16(builder, pair), _bf16(builder, builder.add(pair, c64(2 * TILE)))

        updated = []
        row_bytes = builder.mul(groups, c64(GROUP))
        for r in range(rows):
            dots = []
            for part in range(parts):
                row = builder.add(x, builder.mul(row_bytes, c64(r * parts + part)))
                row = builder.add(row, builder.mul(g, c64(GROUP)))
                total_i = ir.Constant(_INTS, None)
                for j in range(_QUADS):
                    four_x = builder.load(_at(builder, row, c64(4 * j), _I32), align=1)
                    lanes = _splat(builder, four_x, _INTS)
                    total_i = builder.call(dot, [total_i, quads[j], lanes])
                dots.append(builder.sitofp(total_i, _FLOATS))
            total_f = dots[0]
            if parts == 2:
                total_f = builder.call(
                    fma, [dots[1], ir.Constant(_FLOATS, [_LOW_UNIT] * 16), total_f]
                )
            at = builder.add(builder.mul(groups, c64(8 * r)), builder.mul(g, c64(8)))
            factor = builder.load(_at(builder, x_scales, at, _F32), align=4)
            shift = builder.load(_at(builder, x_scales, builder.add(at, c64(4)), _F32), align=4)
            grown = builder.fmul(scale, _splat(builder, factor, _FLOATS))
            total = builder.call(fma, [total_f, grown, sums[r]])
            updated.append(builder.call(fma, [least, _splat(builder, shift, _FLOATS), total]))
        following = builder.add(g, c64(1))
        g.add_incoming(following, builder.block)
        for total, new in zip(sums, updated, strict=True):
            total.add_incoming(new, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, groups), loop, done)
        builder.position_at_end(done)
        for r in range(rows):
            into = builder.add(out, builder.mul(out_stride, c64(2 * r)))
            _store_bf16(builder, updated[r], into)
        return context.get_dummy_value()

    return generate


def _tile(rows: int, bits: int, parts: int) -> Any:
    """A function that computes 16 outputs of `rows` rows.

    Its arguments, addresses and counts: the tile's weights and scales (see `pack`), x (int8, high
    bytes of a row and, with two parts, then its low bytes), scales of x (per row and group: scale,
    and scale times the sum of the group), out (bfloat16), number of groups, outputs of a whole row.
    """

    @intrinsic
    def tile(
        typing: Any, weights: Any, scales: Any, x: Any, x_scales: Any, out: Any, groups: Any,
        out_stride: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.int64] * 7), _generate_tile(rows, bits, parts)

    return tile


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
                total += np.float32(q) * np.float32(_LOW_UNIT)
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
    tile1, tile2, tile4, tile8 = (_tile(rows, bits, parts) for rows in _ROWS)
    group_bytes = _group_bytes(bits)

    @cfunc("void(int64)", **{**OPTIONS, "cache": False, "nogil": False})
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
                w = weights + t * groups * group_bytes
                s = scales + t * groups * _SCALE_BYTES
                r = 0
                while r < rows:
                    x_at, scales_at = x + r * row_bytes, x_scales + 8 * r * groups
                    into = out + 2 * (r * outputs + t * TILE)
                    left = rows - r
                    if left >= 8:
                        tile8(w, s, x_at, scales_at, into, groups, outputs)
                        r += 8
                    elif left >= 4:
                        tile4(w, s, x_at, scales_at, into, groups, outputs)
                        r += 4
                    elif left >= 2:
                        tile2(w, s, x_at, scales_at, into, groups, outputs)
                        r += 2
                    else:
                        tile1(w, s, x_at, scales_at, into, groups, outputs)
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
        halves = codes.view(tiles, TILE, groups, 2, _QUADS // 2, 4).permute(0, 2, 4, 1, 5, 3)
        weights = halves[..., 0] | halves[..., 1] << 4
    else:
        weights = codes.view(tiles, TILE, groups, _QUADS, 4).permute(0, 2, 3, 1, 4)
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
