"""The inner loops of the compiled attention, as vector code of 16 lanes.

Scores have 16 keys in the lanes: keys are turned on their side once, 16 at a time, and serve all
queries from registers, without a horizontal sum. The mix has 32 dimensions in two vectors for each
of up to eight queries. bfloat16 numbers are read in pairs, as 32 bits: where the CPU has
`vdpbf16ps` (AVX512-BF16) a pair of the key meets a pair of the query in one instruction, and
elsewhere the halves become two float vectors by a shift and a mask.

Every sum is a chain of its own in an order that depends on the query and on absolute positions
only, so a query's result has the same bits whichever queries share the tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

LANES = 16
# Queries whose sums are held in registers at once.
TILE = 8
# Bytes of a query in a part (32 dimensions), as pairs of bfloat16 or as floats.
PAIR_BYTES, FLOAT_BYTES = 64, 128
# Bytes of a query's unfinished mix in a part: floats of the even dimensions, then of the odd.
MIX_BYTES = 128


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_I1, _I32, _I64, _F32 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BITS, _INTS, _FLOATS = (ir.VectorType(kind, LANES) for kind in (_I1, _I32, _F32))
_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)
_ZEROS = ir.Constant(_FLOATS, [0.0] * LANES)
_IOTA = ir.Constant(_INTS, list(range(LANES)))
_ODD = ir.Constant(_INTS, [-65536] * LANES)
# 2**x for -0.5 <= x <= 0.5 (Cephes, exp2f), highest power first.
_EXP2 = (1.535336188e-4, 1.339887440e-3, 9.618437357e-3, 5.550332471e-2, 0.2402264791, 0.6931472028)


@functools.cache
def has_dot() -> bool:
    """Whether this CPU has the dot product of bfloat16 pairs."""
    return bool(binding.get_host_cpu_features().get("avx512bf16"))


def _c(value: int) -> Any:
    return ir.Constant(_I64, value)


def _all(value: float) -> Any:
    return ir.Constant(_FLOATS, [value] * LANES)


def _at(b: Any, base: Any, kind: Any, offset: int = 0) -> Any:
    return b.inttoptr(b.add(base, _c(offset)), kind.as_pointer())


def _load(b: Any, base: Any, kind: Any, offset: int = 0) -> Any:
    return b.load(_at(b, base, kind, offset), align=4)


def _store(b: Any, value: Any, base: Any, offset: int = 0) -> None:
    b.store(value, _at(b, base, value.type, offset), align=4)


def _splat(b: Any, value: Any) -> Any:
    kind = ir.VectorType(value.type, LANES)
    lone = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    return b.shuffle_vector(lone, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, None))


def _intrinsic(b: Any, name: str, result: Any, *arguments: Any) -> Any:
    known = b.module.globals.get(name)
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return b.call(known or ir.Function(b.module, kind, name), arguments)


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return _intrinsic(b, "llvm.fma.v16f32", _FLOATS, x, y, z)


def _below(b: Any, count: Any) -> Any:
    """A mask of the lanes under an int64."""
    return b.icmp_signed("<", _IOTA, _splat(b, b.trunc(count, _I32)))


def _load_some(b: Any, address: Any, mask: Any) -> Any:
    """Up to 16 pairs of bfloat16; what lies behind a row is not ours to read."""
    at, align = _at(b, address, _INTS), ir.Constant(_I32, 2)
    none = ir.Constant(_INTS, None)
    return _intrinsic(b, "llvm.masked.load.v16i32.p0", _INTS, at, align, mask, none)


def _halves(b: Any, pairs: Any) -> tuple[Any, Any]:
    """Pairs of bfloat16 to floats: the even ones, the odd ones."""
    even = b.shl(pairs, ir.Constant(_INTS, [16] * LANES))
    return b.bitcast(even, _FLOATS), b.bitcast(b.and_(pairs, _ODD), _FLOATS)


def _loop(
    b: Any, start: Any, stop: Any, carried: Sequence[Any], body: Callable[..., list[Any]]
) -> list[Any]:
    """Code for `for i in range(start, stop): carried = body(i, *carried)`."""
    head, inside, done = (b.append_basic_block(n) for n in ("head", "inside", "done"))
    entry = b.block
    b.branch(head)
    b.position_at_end(head)
    i, values = b.phi(_I64), [b.phi(value.type) for value in carried]
    i.add_incoming(start, entry)
    for value, first in zip(values, carried, strict=True):
        value.add_incoming(first, entry)
    b.cbranch(b.icmp_signed("<", i, stop), inside, done)
    b.position_at_end(inside)
    following = [b.add(i, _c(1)), *body(i, *values)]
    for value, new in zip([i, *values], following, strict=True):
        value.add_incoming(new, b.block)
    b.branch(head)
    b.position_at_end(done)
    return values


def _for_each_size(b: Any, size: Any, generate: Callable[[int], None]) -> None:
    """Code for each number of queries of a tile, and the choice among them."""
    done = b.append_basic_block("sized")
    choice = b.switch(size, done)
    for n in range(1, TILE + 1):
        block = b.append_basic_block(f"size{n}")
        choice.add_case(_c(n), block)
        b.position_at_end(block)
        generate(n)
        b.branch(done)
    b.position_at_end(done)


def _turned(b: Any, rows: list[Any]) -> list[Any]:
    """Transposes 16 vectors of 16: neighbours, pairs of neighbours, then quarters of a vector."""

    def mixed(x: Any, y: Any, lanes: Sequence[int]) -> Any:
        return b.shuffle_vector(x, y, ir.Constant(_INTS, list(lanes)))

    def in_quarters(*lanes: int) -> list[int]:
        return [4 * quarter + lane for quarter in range(4) for lane in lanes]

    singles = in_quarters(0, 16, 1, 17), in_quarters(2, 18, 3, 19)
    doubles = in_quarters(0, 1, 16, 17), in_quarters(2, 3, 18, 19)
    quads: list[list[Any]] = []
    for i in range(0, LANES, 4):
        low, high = ([mixed(rows[i + k], rows[i + k + 1], s) for k in (0, 2)] for s in singles)
        quads.append([mixed(pair[0], pair[1], s) for pair in (low, high) for s in doubles])
    evens = [*range(4), *range(8, 12), *range(16, 20), *range(24, 28)]
    odds = [lane + 4 for lane in evens]
    turned: list[Any] = [None] * LANES
    for c in range(4):
        for first, which in ((0, evens), (1, odds)):
            top = mixed(quads[0][c], quads[1][c], which)
            bottom = mixed(quads[2][c], quads[3][c], which)
            turned[4 * first + c] = mixed(top, bottom, evens)
            turned[4 * (first + 2) + c] = mixed(top, bottom, odds)
    return turned


def _dot(b: Any, dot: bool, total: Any, pair: Any, query: Any, offset: int) -> Any:
    """total + the products of a pair of dimensions of 16 keys and of one query."""
    if dot:
        mine = _splat(b, _load(b, query, _I32, offset * 4))
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        sides = (b.bitcast(side, _PAIRS) for side in (pair, mine))
        return _intrinsic(b, name, _FLOATS, total, *sides)
    for k, half in enumerate(_halves(b, pair)):
        total = _fma(b, half, _splat(b, _load(b, query, _F32, offset * 8 + 4 * k)), total)
    return total


@intrinsic
def fetch(typing: Any, address: Any) -> Any:
    """Asks for the cache line at an address, int64, that will be read soon."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        at = _at(b, arguments[0], ir.IntType(8))
        # To read, for the second level cache, data.
        how = (ir.Constant(_I32, n) for n in (0, 2, 1))
        _intrinsic(b, "llvm.prefetch.p0", ir.VoidType(), at, *how)
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _score_with(dot: bool) -> Any:
    query_bytes = PAIR_BYTES if dot else FLOAT_BYTES

    @intrinsic
    def score(
        typing: Any, keys: Any, offset: Any, left: Any, queries: Any, scores: Any, count: Any,
        size: Any,
    ) -> Any:  # fmt: skip
        """Adds a part of 32 dimensions to the scores of 16 keys.

        Args, all int64: address of 16 addresses of keys; bytes of a key before this part, which
        starts the sums where they are 0; pairs of dimensions that are left; address of the part's
        queries; of the scores, float32 [count, 16]; number of queries, and how many at a time.
        """

        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            keys, offset, left, queries, scores, count, size = arguments
            mask = _below(b, left)
            starts = [b.add(_load(b, keys, _I64, 8 * i), offset) for i in range(LANES)]
            pairs = _turned(b, [_load_some(b, start, mask) for start in starts])
            fresh = b.icmp_signed("==", offset, _c(0))

            def some(i: Any) -> list[Any]:
                first = b.mul(i, size)
                mine = b.add(queries, b.mul(first, _c(query_bytes)))
                into = b.add(scores, b.mul(first, _c(4 * LANES)))
                left = b.sub(count, first)

                def tile(n: int) -> None:
                    sums = [_load(b, into, _FLOATS, 4 * LANES * q) for q in range(n)]
                    sums = [b.select(fresh, _ZEROS, total) for total in sums]
                    for k, pair in enumerate(pairs):
                        for q in range(n):
                            query = b.add(mine, _c(query_bytes * q))
                            sums[q] = _dot(b, dot, sums[q], pair, query, k)
                    for q in range(n):
                        _store(b, sums[q], into, 4 * LANES * q)

                least = b.select(b.icmp_signed("<", left, size), left, size)
                _for_each_size(b, least, tile)
                return []

            tiles = b.sdiv(b.sub(b.add(count, size), _c(1)), size)
            _loop(b, _c(0), tiles, [], some)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return score


score_pairs, score_floats = _score_with(True), _score_with(False)


def _fold(b: Any, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
    """All lanes in one, by halves."""
    for step in (8, 4, 2, 1):
        lanes = [(lane + step) % LANES for lane in range(LANES)]
        vector = join(vector, b.shuffle_vector(vector, vector, ir.Constant(_INTS, lanes)))
    return vector


def _exp2(b: Any, x: Any) -> Any:
    """2**x for x <= 0, relative error under 2e-7. Adding 1.5 * 2**23 rounds to an integer and
    leaves it in the lowest bits."""
    x = b.select(b.fcmp_ordered("<", x, _all(-126.0)), _all(-126.0), x)
    shifted = b.fadd(x, _all(12582912.0))
    rest = b.fsub(x, b.fsub(shifted, _all(12582912.0)))
    power = _all(_EXP2[0])
    for factor in _EXP2[1:]:
        power = _fma(b, power, rest, _all(factor))
    power = _fma(b, power, rest, _all(1.0))
    exponent = b.shl(b.bitcast(shifted, _INTS), ir.Constant(_INTS, [23] * LANES))
    return b.bitcast(b.add(b.bitcast(power, _INTS), exponent), _FLOATS)


@intrinsic
def softmax(typing: Any, scores: Any, stride: Any, first: Any, last: Any, factor: Any) -> Any:
    """Scores of one query to exp(scaling * (score - highest)); returns the sum.

    Args: address of the scores of keys 0 to 15; bytes from 16 keys to the next 16; first and last
    key that the query sees (the other lanes become 0), int64; scaling / ln 2, float32.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        scores, stride, first, last, factor = arguments
        scale, lowest = _splat(b, factor), _splat(b, b.trunc(first, _I32))
        span = _splat(b, b.trunc(b.sub(last, first), _I32))
        start, stop = b.ashr(first, _c(4)), b.add(b.ashr(last, _c(4)), _c(1))

        def visible(i: Any) -> tuple[Any, Any]:
            index = b.add(_splat(b, b.trunc(b.shl(i, _c(4)), _I32)), _IOTA)
            return b.add(scores, b.mul(i, stride)), b.icmp_unsigned(
                "<=", b.sub(index, lowest), span
            )

        def greater(x: Any, y: Any) -> Any:
            return b.select(b.fcmp_ordered(">", x, y), x, y)

        def search(i: Any, best: Any) -> list[Any]:
            at, seen = visible(i)
            mine = b.select(seen, _load(b, at, _FLOATS), _all(float("-inf")))
            return [greater(mine, best)]

        def raise_(i: Any, total: Any) -> list[Any]:
            at, seen = visible(i)
            power = _exp2(b, b.fmul(b.fsub(_load(b, at, _FLOATS), best), scale))
            power = b.select(seen, power, _ZEROS)
            _store(b, power, at)
            return [b.fadd(total, power)]

        best = _fold(b, _loop(b, start, stop, [_all(float("-inf"))], search)[0], greater)
        total = _fold(b, _loop(b, start, stop, [_ZEROS], raise_)[0], b.fadd)
        return b.extract_element(total, ir.Constant(_I32, 0))

    i64 = types.int64
    return types.float32(i64, i64, i64, i64, types.float32), generate


@intrinsic
def mix(
    typing: Any, values: Any, slots: Any, slot_bytes: Any, left: Any, shares: Any, stride: Any,
    sums: Any, start: Any, stop: Any, size: Any, fresh: Any,
) -> Any:  # fmt: skip
    """Adds values by their shares for up to TILE queries, in a part of 32 dimensions.

    Args, all int64: address of the part in slot 0; of the slots; bytes of a slot; pairs of
    dimensions that are left; address of the shares of keys 0 to 15, float32 [queries, 16]; bytes
    from 16 keys to the next 16; address of the sums (see MIX_BYTES); first key, and the one
    behind the last; number of queries; 1 to start from zero.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        values, slots, slot_bytes, left, shares, stride, sums, start, stop, size, fresh = arguments
        mask, fresh = _below(b, left), b.icmp_signed("!=", fresh, _c(0))

        def tile(n: int) -> None:
            def add(j: Any, *totals: Any) -> list[Any]:
                slot = b.load(b.gep(b.inttoptr(slots, _I64.as_pointer()), [j]))
                both = _halves(b, _load_some(b, b.add(values, b.mul(slot, slot_bytes)), mask))
                at = b.add(shares, b.mul(b.ashr(j, _c(4)), stride))
                at = b.add(at, b.shl(b.and_(j, _c(15)), _c(2)))
                mine = [_splat(b, _load(b, at, _F32, 4 * LANES * q)) for q in range(n)]
                return [_fma(b, mine[i // 2], both[i % 2], t) for i, t in enumerate(totals)]

            offsets = [MIX_BYTES // 2 * i for i in range(2 * n)]
            totals = [_load(b, sums, _FLOATS, offset) for offset in offsets]
            totals = [b.select(fresh, _ZEROS, total) for total in totals]
            for total, offset in zip(_loop(b, start, stop, totals, add), offsets, strict=True):
                _store(b, total, sums, offset)

        _for_each_size(b, size, tile)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), generate


@intrinsic
def finish(typing: Any, sums: Any, factor: Any, out: Any, left: Any) -> Any:
    """A part of a query's mix, times a factor (float32), rounded to bfloat16 in its place."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        sums, factor, out, left = arguments
        sixteen, one, bias = (ir.Constant(_INTS, [n] * LANES) for n in (16, 1, 0x7FFF))
        rounded = []
        for offset in (0, MIX_BYTES // 2):
            scaled = b.fmul(_load(b, sums, _FLOATS, offset), _splat(b, factor))
            bits = b.bitcast(scaled, _INTS)
            odd = b.and_(b.lshr(bits, sixteen), one)
            rounded.append(b.add(bits, b.add(bias, odd)))
        both = b.or_(b.lshr(rounded[0], sixteen), b.and_(rounded[1], _ODD))
        name, void = "llvm.masked.store.v16i32.p0", ir.VoidType()
        _intrinsic(
            b, name, void, both, _at(b, out, _INTS), ir.Constant(_I32, 2), _below(b, left)
        )  # fmt: skip
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, types.float32, i64, i64), generate
