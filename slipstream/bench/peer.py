"""Our end of the transformers worker: requests and answers as lines of JSON over pipes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.bench.processes import Child, child
from slipstream.bench.records import Generation, Speculation
from slipstream.core.errors import DeadlineExceeded

PROMPT_LOOKUP_TOKENS = 8
_START_SECONDS = 300.0
_REQUEST_SECONDS = 600.0


def up_to_eos(tokens: Sequence[int], eos: frozenset[int]) -> tuple[int, ...]:
    """The tokens up to and including the first end-of-sequence token."""
    for place, token in enumerate(tokens):
        if token in eos:
            return tuple(tokens[: place + 1])
    return tuple(tokens)


def speculation_of(widths: Sequence[int], prompt_length: int, generated: int) -> Speculation:
    """Counts of an assisted generation, from the rows of each of its forward passes.

    Each pass commits one token of the model's own besides the drafts that it accepts, so
    accepted = generated - passes. Where the end cuts an accepted run, that counts too few, by
    less than one run in a generation.
    """
    drafts = [widths[0] - prompt_length, *(width - 1 for width in widths[1:])]
    return Speculation(
        steps=len(widths),
        spec_steps=sum(count > 0 for count in drafts),
        drafted=sum(drafts),
        accepted=min(max(generated - len(widths), 0), sum(drafts)),
    )


@dataclass(frozen=True, slots=True)
class TransformersPeer:
    """The running worker. Answers one request at a time."""

    process: Child
    eos_token_ids: frozenset[int]

    async def generate(
        self, prompt: Sequence[int], max_tokens: int, eos: frozenset[int], *, prompt_lookup: bool
    ) -> Generation:
        """One greedy generation. Raises ConfigurationError where the worker died."""
        request = {
            "token_ids": list(prompt),
            "max_tokens": max_tokens,
            "prompt_lookup": PROMPT_LOOKUP_TOKENS if prompt_lookup else None,
            "eos_token_ids": sorted(eos),
        }
        pipe = self.process.process.stdin
        if pipe is None:
            raise self.process.failure("has no stdin")
        pipe.write(json.dumps(request).encode() + b"\n")
        answer = await read_line(self.process, _REQUEST_SECONDS)
        tokens = up_to_eos(answer["token_ids"], eos)
        counts = speculation_of(answer["widths"], len(prompt), len(tokens))
        return Generation(tokens, answer["seconds"], answer["ttft_seconds"], counts)


async def read_line(process: Child, seconds: float) -> dict[str, Any]:
    """The worker's next line.

    Raises:
        ConfigurationError: the worker ended instead.
        DeadlineExceeded: no line came within `seconds`.
    """
    pipe = process.process.stdout
    if pipe is None:
        raise process.failure("has no stdout")
    try:
        line = await asyncio.wait_for(pipe.readline(), seconds)
    except TimeoutError as failure:
        raise DeadlineExceeded(f"{process.name} did not answer in {seconds:.0f} s") from failure
    if not line:
        raise process.failure("ended in mid-run")
    answer: dict[str, Any] = json.loads(line)
    return answer


async def start_peer(
    stack: AsyncExitStack, model: Path, logs: Path, threads: int
) -> TransformersPeer:
    """Starts the worker; it ends with `stack`. Raises what `read_line` raises."""
    module = "slipstream.bench.transformers_worker"
    command = [sys.executable, "-m", module, "--model", str(model), "--threads", str(threads)]
    process = await stack.enter_async_context(child("transformers", command, logs, pipes=True))
    ready = await read_line(process, _START_SECONDS)
    return TransformersPeer(process, frozenset(ready["eos_token_ids"]))
