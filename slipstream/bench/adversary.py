"""A process that drafts random tokens as fast as it may: what speculation must not lose to.

Run as `python -m slipstream.bench.adversary --listen HOST:PORT [--cpus 1]`, then start a verifier
with `--drafter HOST:PORT`. It serves DrafterService to any model until SIGTERM, holds no model,
fills every window at once, and claims to be very fast.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal

from slipstream.bench.machine import cores
from slipstream.wire.fake_drafter import DrafterBehaviour, FakeDrafter, random_tokens
from slipstream.wire.host import host_id


async def serve(address: str, cpus: tuple[int, ...], seed: int) -> None:
    """Serves until SIGTERM or SIGINT. It says where it computes, as a real drafter does."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    behaviour = DrafterBehaviour(random_tokens(seed), host=host_id(), cores=cpus)
    drafter = FakeDrafter(behaviour)
    await drafter.start(address)
    await stop.wait()
    await drafter.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m slipstream.bench.adversary")
    parser.add_argument("--listen", default="127.0.0.1:50052", help="host:port to serve gRPC on")
    parser.add_argument("--cpus", default="", help="cores to run on, as 0 or 0,1; empty: all")
    parser.add_argument("--seed", type=int, default=0, help="of the random tokens")
    settings = parser.parse_args()
    if settings.cpus:
        os.sched_setaffinity(0, {int(core) for core in settings.cpus.split(",")})
    asyncio.run(serve(settings.listen, tuple(cores()), settings.seed))


if __name__ == "__main__":
    main()
