"""Code for the inner loop of integer products: 16 outputs of a few rows in `vpdpbusd`.

Written in the compiler's own terms (llvmlite), because numba knows no such instruction; what
calls it is in `integer_kernel`.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

GROUP = 32
TILE = 16
QUADS = GROUP // 4
SCALE_BYTES = 2 * 2 * TILE
# The low byte counts 254ths of the high one's unit: it covers half a unit either way.
LOW_UNIT = 1.0 / 254.0

_I8, _I16, _I32, _I64, _F32 = (
    *(ir.IntType(bits) for bits in (8, 16, 32, 64)),
    ir.FloatType(),
)
_BYTES, _INTS, _FLOATS = (ir.VectorType(kind, n) for kind, n in ((_I8, 64), (_I32, 16), (_F32, 16)))


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


def group_bytes(bits: int) -> int:
    """Bytes of the weights of 16 outputs for one group of inputs."""
    return TILE * GROUP * bits // 8


def _load_quads(builder: Any, base: Any, bits: int) -> list[Any]:
    """The weights of a group: vector j holds inputs 4 j to 4 j + 3 of each of 16 outputs."""
    offsets = [ir.Constant(_I64, 64 * j) for j in range(QUADS * bits // 8)]
    loaded = [builder.load(_at(builder, base, at, _BYTES), align=1) for at in offsets]
    if bits == 4:
        low, four = (ir.Constant(_BYTES, [n] * 64) for n in (15, 4))
        halves = [builder.and_(both, low) for both in loaded]
        loaded = halves + [builder.lshr(both, four) for both in loaded]
    return [builder.bitcast(vector, _INTS) for vector in loaded]


def _generate_tile(rows: int, bits: int, parts: int) -> Any:
    """Code for 16 outputs of `rows` rows; see `tile`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, scales, x, x_scales, out, groups, out_stride = arguments[3:]
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

        base = builder.add(weights, builder.mul(g, c64(group_bytes(bits))))
        quads = _load_quads(builder, base, bits)
        pair = builder.add(scales, builder.mul(g, c64(SCALE_BYTES)))
        scale, least = _bf16(builder, pair), _bf16(builder, builder.add(pair, c64(2 * TILE)))

        updated = []
        row_bytes = builder.mul(groups, c64(GROUP))
        for r in range(rows):
            dots = []
            for part in range(parts):
                row = builder.add(x, builder.mul(row_bytes, c64(r * parts + part)))
                row = builder.add(row, builder.mul(g, c64(GROUP)))
                total_i = ir.Constant(_INTS, None)
                for j in range(QUADS):
                    four_x = builder.load(_at(builder, row, c64(4 * j), _I32), align=1)
                    lanes = _splat(builder, four_x, _INTS)
                    total_i = builder.call(dot, [total_i, quads[j], lanes])
                dots.append(builder.sitofp(total_i, _FLOATS))
            total_f = dots[0]
            if parts == 2:
                total_f = builder.call(
                    fma, [dots[1], ir.Constant(_FLOATS, [LOW_UNIT] * 16), total_f]
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


@intrinsic(prefer_literal=True)
def tile(
    typing: Any, rows: Any, bits: Any, parts: Any, weights: Any, scales: Any, x: Any, x_scales: Any,
    out: Any, groups: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """Computes 16 outputs of some rows.

    Numbers that the compiler must know: rows that share a pass over the weights, bits of the
    weights, parts of the activations. Then addresses and counts: the tile's weights and scales (see
    `integer_kernel.pack`), x (int8, high bytes of a row and, with two parts, then its low bytes),
    scales of x (per row and group: scale, and scale times the sum of the group), out (bfloat16),
    number of groups, outputs of a whole row.
    """
    numbers = (rows, bits, parts)
    generate = _generate_tile(*(number.literal_value for number in numbers))
    return types.void(*numbers, *[types.int64] * 7), generate
