"""Plans in the real pipeline: verifier and drafter as processes, as the benchmark runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import median

from slipstream.bench.records import Prompt, Speculation
from slipstream.bench.rows import Setup
from slipstream.bench.services import Verifier
from slipstream.bench.setups import Place, start_setup
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.throughput import Placement
from slipstream.tune.drafting import KvContext

PLAIN = "plain decoding"
_WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a plan gave in the pipeline.

    Attributes:
        tokens_per_second: median over the repeats; rates: each of them.
        acceptance: accepted over drafted tokens; None where there were none.
        differing: answers, over all repeats, that are not those of plain decoding. None may be,
            but for near-ties in fast exactness.
    """

    tokens_per_second: float
    rates: tuple[float, ...]
    acceptance: float | None
    differing: int


@dataclass(slots=True)
class _Runs:
    rates: list[float] = field(default_factory=list)
    counts: Speculation = field(default_factory=Speculation)
    tokens: list[tuple[int, ...]] = field(default_factory=list)


async def confirm(
    plans: Mapping[str, LayerPlan],
    prompts: Sequence[Prompt],
    place: Place,
    *,
    placement: Placement,
    kv_context: KvContext,
    slowdown: float,
    max_tokens: int,
    repeats: int,
    say: Callable[[str], None],
) -> dict[str, Confirmed]:
    """Greedy generations under each plan, one pair of services after the other, and without any.

    Args:
        place: its folder for logs exists, and takes plan files, too.
        placement: shared gives both services all cores, separate one of their own to each.
        slowdown: of the drafter's passes.
        repeats: the order of the plans is turned with each.

    Raises:
        SlipstreamError: a service did not start or failed.
    """
    runs = {name: _Runs() for name in [PLAIN, *plans]}
    names = list(plans)
    for repeat in range(repeats):
        for turn, name in enumerate(_turned(names, repeat)):
            file = place.logs / "candidate.json"
            plans[name].save(file)
            setup = Setup(
                "tune",
                "own",
                all_cores=placement == "shared",
                placement=placement,
                drafter_options=(
                    "--layer-plan", str(file), "--kv-context", kv_context,
                    "--slowdown", str(slowdown),
                ),
            )  # fmt: skip
            async with AsyncExitStack() as stack:
                verifier = (await start_setup(stack, setup, place, drafter=True)).verifier
                await verifier.generate(prompts[0].token_ids, _WARM_UP_TOKENS, speculative=True)
                await _take(verifier, runs[name], prompts, max_tokens, speculative=True)
                if turn == 0:
                    await _take(verifier, runs[PLAIN], prompts, max_tokens, speculative=False)
            say(f"{name}: {runs[name].rates[-1]:.1f} tokens/s")
    return {name: _confirmed(found, runs[PLAIN].tokens) for name, found in runs.items()}


def _turned(names: list[str], by: int) -> list[str]:
    start = by % len(names)
    return names[start:] + names[:start]


async def _take(
    verifier: Verifier,
    runs: _Runs,
    prompts: Sequence[Prompt],
    max_tokens: int,
    *,
    speculative: bool,
) -> None:
    tokens, seconds = 0, 0.0
    for prompt in prompts:
        generation, _ = await verifier.generate(
            prompt.token_ids, max_tokens, speculative=speculative
        )
        tokens += len(generation.token_ids)
        seconds += generation.seconds
        runs.counts += generation.speculation or Speculation()
        runs.tokens.append(generation.token_ids)
    runs.rates.append(tokens / seconds)


def _confirmed(runs: _Runs, expected: Sequence[tuple[int, ...]]) -> Confirmed:
    drafted, accepted = runs.counts.drafted, runs.counts.accepted
    differing = sum(answer != expected[i % len(expected)] for i, answer in enumerate(runs.tokens))
    acceptance = accepted / drafted if drafted else None
    return Confirmed(median(runs.rates), tuple(runs.rates), acceptance, differing)
