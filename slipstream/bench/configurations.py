"""The configurations behind the rows: how they generate, and whose processes do it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from slipstream.bench.peer import TransformersPeer, start_peer
from slipstream.bench.records import EngineCost, Generation
from slipstream.bench.rows import TRANSFORMERS_PLD, Row, Setup
from slipstream.bench.setups import Place, Running, start_setup

Prompts = Sequence[Sequence[int]]
Generate = Callable[[Prompts, int], Awaitable[tuple[list[Generation], EngineCost | None]]]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Configuration:
    """A row that can be measured.

    Attributes:
        generate: takes prompts (`at_once` of them, as token ids) and max_tokens.
        processes: ids of those that work for it, by name.
        exactness: of our verifier; empty for transformers.
    """

    row: str
    generate: Generate
    processes: Mapping[str, int] = field(default_factory=dict)
    at_once: int = 1
    exactness: str = ""


def _ours(row: Row, running: Running) -> Configuration:
    verifier, speculative = running.verifier, row.speculative

    async def generate(
        prompts: Prompts, max_tokens: int
    ) -> tuple[list[Generation], EngineCost | None]:
        if row.at_once == 1:
            made = [
                await verifier.generate(p, max_tokens, speculative=speculative) for p in prompts
            ]
            return [generation for generation, _ in made], made[-1][1]
        return await verifier.together(prompts, max_tokens, speculative=speculative), None

    # A drafter belongs to rows that speculate alone: during plain decoding it must be idle.
    processes = {**(running.drafters if speculative else {}), **running.verifiers}
    return Configuration(row.name, generate, processes, row.at_once, running.exactness)


def _theirs(row: Row, peer: TransformersPeer, eos: frozenset[int]) -> Configuration:
    async def generate(prompts: Prompts, max_tokens: int) -> tuple[list[Generation], None]:
        lookup = row.name == TRANSFORMERS_PLD
        return [
            await peer.generate(prompt, max_tokens, eos, prompt_lookup=lookup) for prompt in prompts
        ], None

    return Configuration(row.name, generate, {"transformers": peer.process.process.pid})


async def start_configurations(
    stack: AsyncExitStack, rows: Sequence[Row], place: Place, progress: Progress
) -> list[Configuration]:
    """Starts what the rows need, and nothing else; all of it ends with `stack`.

    All rows stop at the same end-of-sequence tokens: the verifiers' where one is measured.
    """
    running: dict[Setup, Running] = {}
    for setup in dict.fromkeys(row.setup for row in rows if row.setup is not None):
        progress(f"starting {setup.name}")
        drafter = any(row.speculative for row in rows if row.setup == setup)
        running[setup] = await start_setup(stack, setup, place, drafter=drafter)
    eos = next((each.eos_token_ids for each in running.values()), None)
    peer: TransformersPeer | None = None
    configurations = []
    for row in rows:
        if row.setup is not None:
            configurations.append(_ours(row, running[row.setup]))
            continue
        if peer is None:
            progress("starting transformers")
            peer = await start_peer(stack, place.model, place.logs, len(place.cpus))
        configurations.append(_theirs(row, peer, peer.eos_token_ids if eos is None else eos))
    return configurations
