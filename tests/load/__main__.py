"""`python -m tests.load`: a stack of its own, known answers, Locust, leak checks, one exit code."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slipstream.bench.leaks import leaked, levels
from slipstream.bench.load.book import known_answers
from slipstream.bench.load.drive import together
from slipstream.bench.load.stack import Stack, running_stack
from slipstream.bench.load.watch import Watch, watching
from slipstream.bench.load.workload import WorkloadSettings, workload
from slipstream.bench.processes import child, end_on_signals
from slipstream.bench.questions import DEFAULT_QUESTIONS
from slipstream.core.errors import SlipstreamError
from slipstream.models import resolve
from tests.load.command import STOP_SECONDS, locust_command

# A drafter that dies sooner after its start than this counts as one that cannot run at all.
_RESTART_SECONDS = (35.0, 90.0)
# Of a run, while drafters are killed.
_SHAKY_SHARE = 0.6
# From here on a run is long enough for its memory to be judged over time.
_LONG_SECONDS = 300.0
_SLACK_MIB = 64.0
_WARM_UP_REQUESTS = 4


@dataclass(frozen=True, slots=True)
class Run:
    """What came out of it; `found` are the leaks."""

    locust: int
    found: list[str]
    kills: int

    @property
    def exit_code(self) -> int:
        return self.locust or int(bool(self.found))


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--seconds", type=float, default=45.0, help="length of the load")
    parser.add_argument("--users", type=int, default=6, help="closed-loop users, HTTP and gRPC")
    parser.add_argument("--rate", type=float, default=0.4, help="Poisson arrivals per second, each")
    parser.add_argument("--leave-share", type=float, default=0.15, help="clients that go away")
    parser.add_argument("--kill-drafter", action="store_true", help="at random times, SIGKILL")
    parser.add_argument("--allow-refusals", action="store_true", help="429 is no fault")
    parser.add_argument("--questions", type=Path, default=DEFAULT_QUESTIONS)
    parser.add_argument("--limit", type=int, default=None, help="most questions")
    parser.add_argument("--chats", type=int, default=8, help="made-up conversations")
    parser.add_argument("--max-tokens", type=int, default=64, help="most of one answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slo-ttft", type=float, default=2.0, help="seconds")
    parser.add_argument("--slo-tpot", type=float, default=0.2, help="seconds")
    parser.add_argument("--model", default="default", help="as of slipstream up")
    parser.add_argument("--kv-cache-gib", type=float, default=0.25, help="small: it must fill up")
    parser.add_argument("--up", action="append", default=[], help="a word for slipstream up")
    parser.add_argument("--out", type=Path, default=Path("build/load/load"), help="files' prefix")
    return parser.parse_args(arguments)


def command(stack: Stack, book: Path, given: argparse.Namespace) -> list[str]:
    users = ["HttpUser", "GrpcUser", *(["HttpArrivals", "GrpcArrivals"] if given.rate else [])]
    count = given.users + len(users) - 2
    more = ["--host", stack.url, "--grpc", stack.grpc, "--model", stack.model]
    more += ["--rate", str(given.rate), "--load-seed", str(given.seed)]
    more += ["--leave-share", str(given.leave_share)]
    more += ["--slo-ttft", str(given.slo_ttft), "--slo-tpot", str(given.slo_tpot)]
    more += ["--allow-refusals"] if given.allow_refusals else []
    return locust_command(users, count, given.seconds, book, given.out, more)


async def restarts(stack: Stack, seed: int, seconds: float, killed: list[float]) -> None:
    """Kills the drafter at random times, for so many seconds: the last one lives long enough for
    its memory to be judged."""
    draw = random.Random(seed)
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    while clock() < end:
        await asyncio.sleep(draw.uniform(*_RESTART_SECONDS))
        if stack.kill_drafter():
            killed.append(clock())


async def load(stack: Stack, book: Path, given: argparse.Namespace) -> Run:
    """Runs Locust against a stack whose answers are known; looks for leaks afterwards."""
    before = await levels(stack.watched())
    killed: list[float] = []
    killer = None
    if given.kill_drafter:
        shaky = _SHAKY_SHARE * given.seconds
        killer = asyncio.create_task(restarts(stack, given.seed, shaky, killed))
    try:
        async with watching(stack) as watch:
            logs = given.out.parent / f"{given.out.name}-logs"
            async with child("locust", command(stack, book, given), logs) as locust:
                limit = given.seconds + 2 * STOP_SECONDS
                code = await asyncio.wait_for(locust.process.wait(), limit)
            sys.stdout.write(locust.log.read_text(encoding="utf-8"))
    finally:
        if killer is not None:
            killer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await killer
    if killed:
        await stack.verifier.wait_for_drafter(60.0)
    # A KV pool's memory comes into use block by block.
    slack = _SLACK_MIB + 1024 * given.kv_cache_gib
    found = await leaked(stack.watched(), before, memory_slack_mib=slack)
    if given.seconds >= _LONG_SECONDS:
        found += watch.growth()
    _report(given, watch, found, len(killed))
    return Run(code, found, len(killed))


def _report(given: argparse.Namespace, watch: Watch, found: list[str], kills: int) -> None:
    """Adds to the figures that Locust's process wrote what it could not know."""
    path = Path(f"{given.out}_outcomes.json")
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content |= {
        "leaks": found,
        "drafter_kills": kills,
        "memory_mib": {
            f"{name} ({pid})": {"first": s[0] >> 20, "most": max(s) >> 20, "last": s[-1] >> 20}
            for (name, pid), s in watch.samples.items()
        },
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    verdicts = content.get("figures", {}).get("verdicts", {})
    _say(f"verdicts: {', '.join(f'{n} {v}' for v, n in verdicts.items()) or 'none'}")
    if verdicts.get("refused") and not given.allow_refusals:
        _say("refusals are faults here: ask less of this machine (--users 2 --rate 0.1)")
    _say(f"drafter kills: {kills}; leaks: {'; '.join(found) or 'none'}")
    _say(f"written: {given.out}.html, {given.out}_slo.csv, {path}")


async def run(given: argparse.Namespace) -> int:
    """The exit code. Raises SlipstreamError where there is no stack to load."""
    end_on_signals()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    dialogues = workload(
        WorkloadSettings(
            questions=given.questions, limit=given.limit, chats=given.chats,
            max_tokens=given.max_tokens, seed=given.seed,
        )
    )  # fmt: skip
    words = ["--exactness", "strict", "--kv-cache-gib", str(given.kv_cache_gib), *given.up]
    logs = given.out.parent / f"{given.out.name}-logs"
    _say("starting a stack")
    async with running_stack("load", resolve(given.model), words, logs) as stack:
        model = await stack.verifier.model()
        book = await known_answers(stack.door, model, dialogues, given.out.parent, _say)
        # What is made with the first request (connections, threads) is there before we look.
        for door in (stack.door, stack.http):
            await together(door, book.entries[:_WARM_UP_REQUESTS])
        path = given.out.parent / f"known-{book.name}.json"
        return (await load(stack, path, given)).exit_code


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(run(options())))
    except SlipstreamError as failure:
        sys.stderr.write(f"error: {failure.message}\n")
        sys.exit(2)
