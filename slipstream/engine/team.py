"""Compiled kernels on several threads: those of the OpenMP team that torch's products run on.

A second pool of threads would fight with that team for the cores: OpenMP's threads spin between
two products. So the kernels borrow the team itself, by the entry point that compilers generate
calls to (`GOMP_parallel`), from the calling thread. Where torch came with another OpenMP there is
no team, and kernels run on the calling thread alone.

A job is an array of int64 on the caller's stack. Slots 0 and 1 are the counter of the next piece
and the number of pieces; the rest is the kernel's. Every thread of the team runs the same worker,
which takes pieces until there are none: a thread whose core is busy elsewhere takes fewer.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_I64 = ir.IntType(64)


@njit
def keep(array: Any) -> None:
    """Holds an array until here: numba frees one after the last use of its name, and an address
    in a job is no use of a name."""


@functools.cache
def entry() -> int:
    """Address of GOMP_parallel in torch's own OpenMP; 0 where there is none."""
    folder = Path(torch.__file__).parent / "lib"
    for path in sorted(folder.glob("libgomp*.so*")):
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


@intrinsic
def next_piece(typing: Any, job: Any) -> Any:
    """Takes the next piece of a job: adds one to its first slot atomically, gives what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        slot = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", slot, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def run(typing: Any, entry: Any, worker: Any, job: Any, threads: Any) -> Any:
    """Runs `worker(job)` on a team of `threads`, or on the calling thread where entry is 0.

    All arguments are int64: addresses, and a number. A worker is a numba `cfunc("void(int64)")`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        gomp, worker, job, threads = arguments
        pointer, void, i32 = ir.IntType(8).as_pointer(), ir.VoidType(), ir.IntType(32)
        alone = ir.FunctionType(void, [_I64])
        team = ir.FunctionType(void, [pointer, pointer, i32, i32])
        several = builder.and_(
            builder.icmp_signed(">", threads, ir.Constant(_I64, 1)),
            builder.icmp_signed("!=", gomp, ir.Constant(_I64, 0)),
        )
        with builder.if_else(several) as (shared, lonely):
            with shared:
                builder.call(
                    builder.inttoptr(gomp, team.as_pointer()),
                    [
                        builder.inttoptr(worker, pointer),
                        builder.inttoptr(job, pointer),
                        builder.trunc(threads, i32),
                        ir.Constant(i32, 0),
                    ],
                )
            with lonely:
                builder.call(builder.inttoptr(worker, alone.as_pointer()), [job])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate
