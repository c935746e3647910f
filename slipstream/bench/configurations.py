"""The configurations behind the rows: which processes they need and how they generate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from slipstream.bench.peer import TransformersPeer, start_peer
from slipstream.bench.records import (
    OUR_ROWS,
    PLAIN,
    PLAIN_ALL,
    SPECULATIVE,
    TRANSFORMERS,
    TRANSFORMERS_PLD,
    EngineCost,
    Generation,
)
from slipstream.bench.services import Verifier, start_verifier
from slipstream.core.errors import ConfigurationError

Generate = Callable[[Sequence[int], int], Awaitable[tuple[Generation, EngineCost | None]]]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Configuration:
    """One row: how to run a generation (token ids, max_tokens), and its processes' ids."""

    row: str
    generate: Generate
    pids: frozenset[int]


def check_rows(rows: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The rows asked for in the order of `known`. Raises ConfigurationError on an unknown one."""
    unknown = [row for row in rows if row not in known]
    if unknown or not rows:
        raise ConfigurationError(f"rows must be among {', '.join(known)}; got {unknown or 'none'}")
    return tuple(row for row in known if row in rows)


def _ours(row: str, verifier: Verifier) -> Configuration:
    async def generate(
        prompt: Sequence[int], max_tokens: int
    ) -> tuple[Generation, EngineCost | None]:
        return await verifier.generate(prompt, max_tokens, speculative=row == SPECULATIVE)

    # The drafter belongs to the speculative row alone: during plain decoding it must be idle.
    children = verifier.processes if row == SPECULATIVE else verifier.processes[-1:]
    return Configuration(row, generate, frozenset(child.process.pid for child in children))


def _theirs(row: str, peer: TransformersPeer, eos: frozenset[int]) -> Configuration:
    run = partial(peer.generate, eos=eos, prompt_lookup=row == TRANSFORMERS_PLD)

    async def generate(prompt: Sequence[int], max_tokens: int) -> tuple[Generation, None]:
        return await run(prompt, max_tokens), None

    return Configuration(row, generate, frozenset({peer.process.process.pid}))


async def start_configurations(
    stack: AsyncExitStack,
    rows: Sequence[str],
    model: Path,
    logs: Path,
    *,
    cpus: Sequence[int],
    exactness: str,
    progress: Progress,
) -> list[Configuration]:
    """Starts what the rows need; all of it ends with `stack`.

    plain-1core and speculative share one verifier on the first core, with a drafter on the
    second (or the first, where there is one only). plain-allcores has a verifier of its own.
    All rows stop at the same end-of-sequence tokens: the verifier's where one is measured.
    """
    configurations: dict[str, Configuration] = {}
    eos: frozenset[int] | None = None
    if PLAIN in rows or SPECULATIVE in rows:
        progress("starting a verifier on one core")
        drafter_cpu = cpus[min(1, len(cpus) - 1)] if SPECULATIVE in rows else None
        verifier = await start_verifier(
            stack,
            model,
            logs,
            name="one-core",
            cpus=cpus[:1],
            drafter_cpu=drafter_cpu,
            exactness=exactness,
        )
        eos = await verifier.eos_token_ids()
        configurations |= {row: _ours(row, verifier) for row in (PLAIN, SPECULATIVE)}
    if PLAIN_ALL in rows:
        progress("starting a verifier on all cores")
        verifier = await start_verifier(
            stack,
            model,
            logs,
            name="all-cores",
            cpus=cpus,
            drafter_cpu=None,
            exactness=exactness,
        )
        eos = await verifier.eos_token_ids()
        configurations[PLAIN_ALL] = _ours(PLAIN_ALL, verifier)
    if set(rows) - set(OUR_ROWS):
        progress("starting transformers")
        peer = await start_peer(stack, model, logs, len(cpus))
        stop = peer.eos_token_ids if eos is None else eos
        for row in (TRANSFORMERS, TRANSFORMERS_PLD):
            configurations[row] = _theirs(row, peer, stop)
    return [configurations[row] for row in rows]
