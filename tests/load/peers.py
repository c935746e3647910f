"""`python -m tests.load.peers` (make bench-peers): the same Locust file against other servers.

Same model folder, bfloat16, same cores; closed-loop users over HTTP; the servers take turns within
each number of users, and those that are not measured are stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from slipstream.bench.bars import Bar
from slipstream.bench.load.book import known_answers
from slipstream.bench.load.serve import leak_bar, leak_checks
from slipstream.bench.load.stack import Stack, running_stack
from slipstream.bench.load.workload import WorkloadSettings, workload
from slipstream.bench.machine import cores, describe_machine
from slipstream.bench.measure import order
from slipstream.bench.processes import child, end_on_signals
from slipstream.bench.questions import DEFAULT_QUESTIONS
from slipstream.bench.report import bar_line, write
from slipstream.core.errors import ConfigurationError, SlipstreamError
from slipstream.models import resolve
from tests.load.command import STOP_SECONDS, locust_command
from tests.load.peer_servers import PEERS, Running, serving, set_up

OURS = "slipstream"
_WARM_UP_SECONDS = 20.0
_WARM_UP_USERS = 4


@dataclass(frozen=True, slots=True)
class Server:
    """One to measure; `running` is None for ours."""

    name: str
    url: str
    model: str
    running: Running | None = None


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.load.peers", description=__doc__)
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", default=",".join(names), help=f"of {', '.join(names)}")
    parser.add_argument("--users", default="1,4,8,16", help="numbers of closed-loop users")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--warm-up", type=float, default=_WARM_UP_SECONDS, help="seconds of each")
    parser.add_argument("--questions", type=Path, default=DEFAULT_QUESTIONS)
    parser.add_argument("--limit", type=int, default=None, help="most questions")
    parser.add_argument("--chats", type=int, default=12, help="made-up conversations")
    parser.add_argument("--max-tokens", type=int, default=96, help="most of one answer")
    parser.add_argument("--model", default="default", help="as of slipstream up")
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--set-up-only", action="store_true", help="make the environments, no more")
    parser.add_argument("--out", type=Path, default=Path("build/peers.json"))
    return parser.parse_args(arguments)


async def measure(
    servers: Sequence[Server], book: Path, given: argparse.Namespace
) -> dict[tuple[int, str], dict[str, Any]]:
    """Figures by number of users and server."""
    for server in servers:
        await _locust(server, _WARM_UP_USERS, given.warm_up, book, given)
    found = {}
    for place, users in enumerate(int(each) for each in given.users.split(",")):
        for server in order(servers, place):
            figures = await _locust(server, users, given.seconds, book, given)
            found[users, server.name] = figures
            _say(f"{users} users, {server.name}: {figures['tokens_per_second']:.1f} tokens/s")
    return found


async def _locust(
    server: Server, users: int, seconds: float, book: Path, given: argparse.Namespace
) -> dict[str, Any]:
    """Raises ConfigurationError where an answer of ours is not the known one, or none came."""
    logs = given.out.parent / f"{given.out.stem}-logs"
    out = logs / f"{server.name}-{users}"
    more = ["--host", server.url, "--model", server.model]
    more += ["--unchecked"] if server.running else []
    if server.running:
        server.running.resume()
    command = locust_command(["HttpUser"], users, seconds, book, out, more)
    try:
        async with child(f"locust-{server.name}-{users}", command, logs) as locust:
            await asyncio.wait_for(locust.process.wait(), seconds + 2 * STOP_SECONDS)
    finally:
        if server.running:
            server.running.pause()
    content = _written(Path(f"{out}_outcomes.json"))
    if not content.get("figures", {}).get("tokens") or (not server.running and content["faults"]):
        raise ConfigurationError(f"{server.name} did not answer as it must: see {out}*")
    figures: dict[str, Any] = content["figures"]
    return figures


def _written(path: Path) -> dict[str, Any]:
    """What Locust's process left; nothing where it ended before."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def bars(found: Mapping[tuple[int, str], dict[str, Any]]) -> list[Bar]:
    """Ours against each of theirs: higher throughput, lower p95 TTFT."""
    lines = []
    for (users, name), theirs in found.items():
        if name == OURS:
            continue
        ours = found[users, OURS]
        speed = ours["tokens_per_second"] / theirs["tokens_per_second"]
        ttft = ours["ttft"]["p95"] / theirs["ttft"]["p95"]
        lines.append(Bar(f"{users} users: tokens/s / {name}", speed, 1.0, at_least=True))
        lines.append(Bar(f"{users} users: p95 TTFT / {name}", ttft, 1.0, at_least=False))
    return lines


def table(found: Mapping[tuple[int, str], dict[str, Any]]) -> Table:
    view = Table(title="Closed-loop users over HTTP; times in ms")
    for heading in ("users", "server", "tok/s", "TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95"):
        view.add_column(heading, justify="left" if heading == "server" else "right", no_wrap=True)
    view.add_column("faults", justify="right")
    for (users, name), each in sorted(found.items(), key=lambda item: item[0][0]):
        times = [each[kind][part] for kind in ("ttft", "tpot") for part in ("p50", "p95")]
        faults = sum(each["verdicts"].get(kind, 0) for kind in ("wrong", "truncated", "missing"))
        cells = [f"{1000 * time:.0f}" for time in times]
        view.add_row(str(users), name, f"{each['tokens_per_second']:.1f}", *cells, str(faults))
    return view


async def run(given: argparse.Namespace) -> None:
    """Raises SlipstreamError where an environment, a server or the stack cannot be had."""
    end_on_signals()
    chosen = [peer for peer in PEERS if peer.name in given.peers.split(",")]
    pythons = {}
    for name in dict.fromkeys(peer.environment for peer in chosen):
        _say(f"environment {given.environments / name}")
        pythons[name] = await asyncio.to_thread(set_up, given.environments.resolve(), name)
    if given.set_up_only:
        return
    model, logs = resolve(given.model), given.out.parent / f"{given.out.stem}-logs"
    settings = WorkloadSettings(given.questions, given.limit, given.chats, given.max_tokens, True)
    async with AsyncExitStack() as exits:
        _say(f"starting {OURS}")
        words = ["--exactness", "strict", "--log-level", "warning"]
        stack: Stack = await exits.enter_async_context(running_stack(OURS, model, words, logs))
        folder = given.out.parent
        described = await stack.verifier.model()
        book = await known_answers(stack.door, described, workload(settings), folder, _say)
        servers = [Server(OURS, stack.url, stack.model)]
        for peer in chosen:
            _say(f"starting {peer.name}")
            ready = serving(peer, pythons[peer.environment], model, logs)
            running = await exits.enter_async_context(ready)
            running.pause()
            servers.append(Server(peer.name, running.url, str(model), running))
        async with leak_checks(_say, stack) as left:
            found = await measure(servers, folder / f"known-{book.name}.json", given)
    _show(found, left, given)


def _show(
    found: Mapping[tuple[int, str], dict[str, Any]], left: Sequence[str], given: argparse.Namespace
) -> None:
    Console(width=110).print(table(found))
    lines = [*bars(found), leak_bar(left)]
    for bar in lines:
        _say(bar_line(bar))
    content = {
        "figures": [{"users": u, "server": n, **each} for (u, n), each in found.items()],
        "bars": [{**asdict(bar), "met": bar.met} for bar in lines],
        "machine": describe_machine(len(cores())),
        "run": {"seconds": given.seconds, "chats": given.chats, "max_tokens": given.max_tokens},
    }
    write(given.out, content)
    _say(f"written: {given.out}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        asyncio.run(run(options()))
    except SlipstreamError as failure:
        sys.stderr.write(f"error: {failure.message}\n")
        sys.exit(2)
