"""Compiled attention for few rows of bfloat16 on a CPU: rotation, KV write, softmax and mix.

One call serves all segments of a batch. The rows' keys and values go to the pool first, then the
work falls into pieces, a KV head and up to 16 of its queries each, that any threads may take. A
row's result has the same bits whatever the number of rows, the company and the threads.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import torch
from llvmlite import binding
from numba import carray, cfunc, njit

from slipstream.engine.attention_tiles import (
    FLOAT_BYTES,
    LANES,
    MIX_BYTES,
    PAIR_BYTES,
    TILE,
    fetch,
    finish,
    has_dot,
    mix,
    score_floats,
    score_pairs,
    softmax,
)
from slipstream.engine.batch import Batch
from slipstream.engine.kernel_cache import CACHED
from slipstream.engine.kernels import OPTIONS, as_f32, as_i64, as_u16, load_bf16, round_bf16
from slipstream.engine.team import entry, keep, next_piece, run

# Dimensions that are in registers at once.
_PART = 32
# Queries of a piece: all read the keys that were turned on their side for it.
_QUERIES = 16
# The largest block in which the products of a decoding step keep their bits
# (exactness.MAX_STRICT_ROWS).
MAX_DECODING_ROWS = 32
# Slots of a job (see `team`) behind the counter and the number of pieces.
_JOB = 14
# Numbers of a segment: first row, rows, position of the first row, address of the slots.
_SEGMENT = 4
# Fewer products of a query with a key are done sooner than a team is called.
_TEAM_PRODUCTS = 2000
# Blocks of 16 keys that are asked for before they are needed, and bytes of a cache line.
_AHEAD, _LINE = 4, 64
_LOG2E = 1.4426950408889634
_ALIGN = 64
_I = "int64"


def segment_table(batch: Batch) -> torch.Tensor:
    """What the kernel needs to know of a batch, int64 [segments, 4]; serves all layers."""
    rows = [(s.rows.start, s.rows.stop - s.rows.start, s.position, s.table.address)
            for s in batch.segments]  # fmt: skip
    return torch.tensor(rows, dtype=torch.int64).view(-1, _SEGMENT)


@njit(inline="always")
def _aligned(address: int) -> int:
    return (address + _ALIGN - 1) // _ALIGN * _ALIGN


@njit(inline="always")
def _turn(x: int, cos: int, sin: int, out: int, dim: int) -> None:
    """Rotates a head (arXiv 2104.09864). All bfloat16 [dim]; sin with its first half negated."""
    half = dim // 2
    for start, other in ((0, half), (half, 0)):
        mine = carray(as_u16(x + 2 * start), (half,))
        swapped = carray(as_u16(x + 2 * other), (half,))
        c, s = carray(as_u16(cos + 2 * start), (half,)), carray(as_u16(sin + 2 * start), (half,))
        into = carray(as_u16(out + 2 * start), (half,))
        for d in range(half):
            into[d] = round_bf16(
                load_bf16(mine[d]) * load_bf16(c[d]) + load_bf16(swapped[d]) * load_bf16(s[d])
            )


@njit(inline="always")
def _piece(piece: int, segments: int, group: int, kv_heads: int) -> tuple[int, int, int, int]:
    """Segment, KV head, and the range of its queries that are a piece."""
    s = 0
    while True:
        queries = carray(as_i64(segments + 8 * _SEGMENT * s), (_SEGMENT,))[1] * group
        tiles = (queries + _QUERIES - 1) // _QUERIES
        if piece < tiles * kv_heads:
            tile = piece % tiles
            return s, piece // tiles, queries * tile // tiles, queries * (tile + 1) // tiles
        piece -= tiles * kv_heads
        s += 1


@njit(inline="always")
def _spread(x: int, out: int, stride: int, dim: int, dot: bool) -> None:
    """A rotated query, bfloat16 [dim], in the layout that scores read: by part, zeros behind."""
    for start in range(0, dim, _PART):
        count = min(_PART, dim - start)
        mine = carray(as_u16(x + 2 * start), (_PART,))
        if dot:
            pairs = carray(as_u16(out), (_PART,))
            for d in range(_PART):
                pairs[d] = mine[d] if d < count else np.uint16(0)
        else:
            floats = carray(as_f32(out), (_PART,))
            for d in range(_PART):
                floats[d] = load_bf16(mine[d]) if d < count else np.float32(0.0)
        out += stride


@njit("void(" + ",".join([_I] * 12) + ")", **OPTIONS)
def _rotate(
    qkv: int, cos: int, sin: int, keys: int, values: int, segment: int, queries: int,
    heads: int, kv_heads: int, dim: int, query_bytes: int, dot: int,
) -> None:  # fmt: skip
    """Writes a segment's keys and values to the pool and its queries to [kv_heads, part, query]."""
    numbers = carray(as_i64(segment), (_SEGMENT,))
    first, rows, position = numbers[0], numbers[1], numbers[2]
    place = carray(as_i64(numbers[3]), (position + rows,))
    group, parts, total = heads // kv_heads, (dim + _PART - 1) // _PART, heads + 2 * kv_heads
    turned = np.empty(parts * _PART, np.uint16)
    for r in range(rows):
        row = qkv + 2 * (first + r) * total * dim
        c, s = cos + 2 * (first + r) * dim, sin + 2 * (first + r) * dim
        for h in range(heads):
            _turn(row + 2 * h * dim, c, s, turned.ctypes.data, dim)
            of_head = queries + (first * heads + h // group * rows * group) * parts * query_bytes
            into = of_head + (r * group + h % group) * query_bytes
            _spread(turned.ctypes.data, into, rows * group * query_bytes, dim, dot != 0)
        at = 2 * place[position + r] * kv_heads * dim
        for h in range(kv_heads):
            _turn(row + 2 * (heads + h) * dim, c, s, keys + at + 2 * h * dim, dim)
        mine = carray(as_u16(row + 2 * (heads + kv_heads) * dim), (kv_heads * dim,))
        into_values = carray(as_u16(values + at), (kv_heads * dim,))
        for d in range(kv_heads * dim):
            into_values[d] = mine[d]


@njit(inline="always")
def _range(row: int, position: int, window: int) -> tuple[int, int]:
    """The first key that a row sees, and the one behind the last."""
    end = position + row + 1
    return (max(0, end - window) if window > 0 else 0), end


@njit(nogil=True)
def _add(
    values: int, slots: int, slot_bytes: int, left: int, shares: int, stride: int, sums: int,
    start: int, stop: int, count: int, fresh: int,
) -> None:  # fmt: skip
    """`mix` as a function, so that its code is there once."""
    mix(values, slots, slot_bytes, left, shares, stride, sums, start, stop, count, fresh)


@njit(inline="always")
def _mix_some(
    values: int, slots: int, slot_bytes: int, left: int, shares: int, stride: int, sums: int,
    first_query: int, count: int, group: int, position: int, window: int,
) -> None:  # fmt: skip
    """The mix of up to TILE queries in a part.

    Keys that all of them see are read once. The few at either end that only some see are added
    for each alone, before and after, so every query adds its own keys in order and no other ones.
    """
    first, high = _range(first_query // group, position, window)
    low, _ = _range((first_query + count - 1) // group, position, window)
    low = min(low, high)
    for q in range(count if first < low else 0):
        mine, _ = _range((first_query + q) // group, position, window)
        _add(values, slots, slot_bytes, left, shares + 4 * LANES * q, stride,
             sums + MIX_BYTES * q, mine, low, 1, 1)  # fmt: skip
    _add(values, slots, slot_bytes, left, shares, stride, sums, low, high, count, first == low)
    for q in range(count):
        mine, end = _range((first_query + q) // group, position, window)
        if end > high:
            _add(values, slots, slot_bytes, left, shares + 4 * LANES * q, stride,
                 sums + MIX_BYTES * q, max(mine, high), end, 1, 0)  # fmt: skip


@njit(inline="always")
def _scores(
    keys: int, values: int, slots: int, slot_bytes: int, queries: int, part_bytes: int, scores: int,
    low: int, end: int, count: int, dim: int, rows_at: int, dot: bool, cold: bool,
) -> None:  # fmt: skip
    """Products of `count` queries with the keys from low's 16 to `end`, float32 [.., count, 16].

    `cold`: they come from memory, and their values after them, in steps that the processor does not
    foresee.
    """
    place, rows = carray(as_i64(slots), (end,)), carray(as_i64(rows_at), (LANES,))
    tiles = (count + TILE - 1) // TILE
    size = (count + tiles - 1) // tiles
    for block in range(low // LANES, (end + LANES - 1) // LANES):
        for i in range(LANES):
            # Lanes behind the end repeat the last key; softmax leaves them out.
            at = place[min(block * LANES + i, end - 1)] * slot_bytes
            rows[i] = keys + at
            if cold:
                ahead = place[min((block + _AHEAD) * LANES + i, end - 1)] * slot_bytes
                for line in range(0, 2 * dim, _LINE):
                    fetch(keys + ahead + line)
                    fetch(values + at + line)
        into = scores + block * 4 * LANES * count
        for part in range((dim + _PART - 1) // _PART):
            offset, left, asks = (
                2 * _PART * part,
                dim // 2 - LANES * part,
                queries + part * part_bytes,
            )
            if dot:
                score_pairs(rows_at, offset, left, asks, into, count, size)
            else:
                score_floats(rows_at, offset, left, asks, into, count, size)


def _make_worker(dot: bool) -> Any:
    query_bytes = PAIR_BYTES if dot else FLOAT_BYTES

    # No fast mathematics: the order of the sums is the tiles', and exp rounds by adding a constant.
    @cfunc("void(int64)", cache=CACHED, error_model="numpy")
    def worker(at: int) -> None:
        job = carray(as_i64(at), (_JOB,))
        segments, queries, keys, values, out = job[2], job[3], job[4], job[5], job[6]
        heads, kv_heads, dim, window, most = job[7], job[8], job[9], job[10], job[11]
        scaling = carray(as_f32(at + 8 * 12), (1,))[0]
        group, parts, slot_bytes = heads // kv_heads, (dim + _PART - 1) // _PART, 2 * kv_heads * dim
        factor = np.float32(scaling * np.float32(_LOG2E))
        room = np.empty(most * _QUERIES + _QUERIES * parts * 32 + 64, np.float32)
        rows_at = np.empty(LANES, np.int64)
        while True:
            piece = next_piece(at)
            if piece >= job[1]:
                return
            s, h, begin, stop = _piece(piece, segments, group, kv_heads)
            numbers = carray(as_i64(segments + 8 * _SEGMENT * s), (_SEGMENT,))
            first_row, rows, position, slots = numbers[0], numbers[1], numbers[2], numbers[3]
            count, part_bytes = stop - begin, rows * group * query_bytes
            low, _ = _range(begin // group, position, window)
            _, end = _range((stop - 1) // group, position, window)
            asks = queries + (first_row * heads + h * rows * group) * parts * query_bytes
            sums = _aligned(room.ctypes.data)
            # Where the scores of key 0 would be.
            stride = 4 * LANES * count
            scores = sums + parts * count * MIX_BYTES - low // LANES * stride
            head = 2 * h * dim
            # Many queries of a sequence find in the cache what the first of them read.
            cold = rows * group <= 2 * _QUERIES
            _scores(keys + head, values + head, slots, slot_bytes, asks + begin * query_bytes,
                    part_bytes, scores, low, end, count, dim, rows_at.ctypes.data, dot,
                    cold)  # fmt: skip
            weights = np.empty(_QUERIES, np.float32)
            for q in range(count):
                mine, behind = _range((begin + q) // group, position, window)
                total = softmax(scores + 4 * LANES * q, stride, mine, behind - 1, factor)
                weights[q] = np.float32(1.0) / total
            tiles = (count + TILE - 1) // TILE
            for part in range(parts):
                offset, left = 2 * _PART * part, dim // 2 - LANES * part
                for tile in range(tiles):
                    q, upto = count * tile // tiles, count * (tile + 1) // tiles
                    _mix_some(
                        values + head + offset, slots, slot_bytes, left, scores + 4 * LANES * q,
                        stride, sums + (part * count + q) * MIX_BYTES, begin + q, upto - q, group,
                        position, window,
                    )  # fmt: skip
                for q in range(count):
                    row, g = (begin + q) // group, (begin + q) % group
                    into = out + 2 * ((first_row + row) * heads + h * group + g) * dim + offset
                    finish(sums + (part * count + q) * MIX_BYTES, weights[q], into, left)

    return worker


@functools.cache
def _worker(dot: bool) -> Any:
    return _make_worker(dot)


@functools.cache
def most_rows() -> int:
    """Up to how many rows `attend` is known to be faster than torch's attention.

    Without matrix instructions it is for any number: 4 times at a prompt's first 256 rows, 2 to 4
    times at 1000 tokens of context. With them, or on other CPUs, it is for decoding and verifying.
    """
    matrices = binding.get_host_cpu_features().get("amx-bf16")
    return sys.maxsize if has_dot() and not matrices else MAX_DECODING_ROWS


def prepare() -> None:
    """Compiles what `attend` will call, or reads it from the disk, so that no request waits."""
    _worker(has_dot())


def worker_address() -> int:
    """Of the worker for this CPU, to hand to `attend_rows`."""
    address: int = _worker(has_dot()).address
    return address


@njit("void(" + ",".join([_I] * 16) + ",float32)", **OPTIONS)
def attend_rows(
    entry: int, worker: int, threads: int, dot: int, qkv: int, cos: int, sin: int, keys: int,
    values: int, segments: int, segment_count: int, out: int, heads: int, kv_heads: int, dim: int,
    window: int, scaling: float,
) -> None:  # fmt: skip
    """`attend`, for compiled callers: addresses, counts and flags."""
    group, parts = heads // kv_heads, (dim + _PART - 1) // _PART
    query_bytes = PAIR_BYTES if dot else FLOAT_BYTES
    numbers = carray(as_i64(segments), (segment_count, _SEGMENT))
    rows, pieces, products, most = 0, 0, 0, 0
    for s in range(segment_count):
        rows = max(rows, numbers[s, 0] + numbers[s, 1])
        pieces += (numbers[s, 1] * group + _QUERIES - 1) // _QUERIES * kv_heads
        end = numbers[s, 2] + numbers[s, 1]
        seen = end if window <= 0 else min(end, window + numbers[s, 1])
        products += numbers[s, 1] * heads * seen
        most = max(most, (seen + 2 * LANES) // LANES * LANES)
    queries = np.empty(rows * heads * parts * query_bytes + _ALIGN, np.uint8)
    at = _aligned(queries.ctypes.data)
    for s in range(segment_count):
        _rotate(qkv, cos, sin, keys, values, segments + 8 * _SEGMENT * s, at,
                heads, kv_heads, dim, query_bytes, dot)  # fmt: skip
    job = np.empty(_JOB, np.int64)
    job[0], job[1], job[2], job[3], job[4] = 0, pieces, segments, at, keys
    job[5], job[6], job[7], job[8], job[9] = values, out, heads, kv_heads, dim
    job[10], job[11] = window, most
    carray(as_f32(job.ctypes.data + 8 * 12), (1,))[0] = scaling
    run(entry, worker, job.ctypes.data, threads if products > _TEAM_PRODUCTS else 1)
    keep(queries)
    keep(job)


def attend(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, keys: int, values: int,
    segments: torch.Tensor, out: torch.Tensor, *, heads: int, kv_heads: int, window: int | None,
    scaling: float, dot: bool | None = None,
) -> None:  # fmt: skip
    """Rotates, writes to the KV pool and attends causally (arXiv 1706.03762, 2305.13245).

    Args:
        qkv: bfloat16 [rows, heads + 2 * kv_heads, dim], contiguous; dim is even.
        cos, sin: bfloat16 [rows, dim]; the first half of sin is negated.
        keys, values: addresses of one layer in the pool, bfloat16 [slots, kv_heads, dim].
        segments: from `segment_table`.
        out: bfloat16 [rows, heads, dim]; rows of no segment are left as they are.
        window: a row sees this many positions, its own included; None sees all.
        dot: whether to use `vdpbf16ps`; None where the CPU has it.
    """
    dot = has_dot() if dot is None else dot
    attend_rows(
        entry(), _worker(dot).address, torch.get_num_threads(), dot, qkv.data_ptr(), cos.data_ptr(),
        sin.data_ptr(), keys, values, segments.data_ptr(), len(segments), out.data_ptr(), heads,
        kv_heads, qkv.shape[-1], window or 0, scaling,
    )  # fmt: skip
