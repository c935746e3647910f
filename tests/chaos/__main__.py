"""`python -m tests.chaos`: all is killed in mid-sentence, and every client gets its answer."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from slipstream.bench.processes import end_on_signals
from slipstream.core.errors import SlipstreamError
from tests.chaos.asks import WAYS
from tests.chaos.run import ChaosSettings, chaos
from tests.chaos.schedule import KINDS, ROLES
from tests.chaos.topology import Topology


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--generations", type=int, default=300, help="turns of sessions included")
    parser.add_argument("--at-once", type=int, default=12, help="clients")
    parser.add_argument("--seed", type=int, default=0, help="of faults, requests and clients")
    parser.add_argument(
        "--tokens", type=int, nargs=2, default=(100, 400), metavar=("LEAST", "MOST")
    )
    parser.add_argument("--ways", type=_some(WAYS), default=WAYS, help=f"of {','.join(WAYS)}")
    parser.add_argument("--faults", type=_some(KINDS), default=KINDS, help=f"of {','.join(KINDS)}")
    parser.add_argument("--targets", type=_some(ROLES), default=ROLES, help=f"of {','.join(ROLES)}")
    parser.add_argument("--every", type=float, default=2.0, help="mean seconds between two faults")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--verifiers", type=int, default=2)
    parser.add_argument("--drafters", type=int, default=2)
    parser.add_argument("--store", choices=("redis", "sqlite"), default="redis")
    parser.add_argument(
        "--resumption", choices=("on", "off"), default="on", help="off: the run must fail"
    )
    parser.add_argument(
        "--stop-at-fault", action="store_true", help="the first wrong answer ends it"
    )
    parser.add_argument("--patience", type=float, default=150.0, help="seconds, of one generation")
    parser.add_argument("--keep-logs", type=Path, default=None, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("build/chaos.json"))
    return parser.parse_args(arguments)


def _some(names: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not of {names}")
        return chosen

    return parse


def settings(given: argparse.Namespace) -> ChaosSettings:
    redis = given.store == "redis"
    return ChaosSettings(
        topology=Topology(given.gateways, given.verifiers, given.drafters, redis),
        generations=given.generations,
        at_once=given.at_once,
        seed=given.seed,
        tokens=tuple(given.tokens),
        ways=given.ways,
        kinds=given.faults,
        roles=given.targets,
        every=given.every,
        resumption=given.resumption == "on",
        stop_at_fault=given.stop_at_fault,
        patience=given.patience,
        logs=given.keep_logs,
    )


async def run(given: argparse.Namespace) -> int:
    """The exit code. Raises SlipstreamError where there is no stack to disturb."""
    end_on_signals()
    report = await chaos(settings(given), _say)
    for line in report.lines():
        _say(line)
    report.write(given.out)
    _say(f"written: {given.out}")
    return report.exit_code


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(run(options())))
    except SlipstreamError as failure:
        sys.stderr.write(f"error: {failure.message}\n")
        sys.exit(2)
