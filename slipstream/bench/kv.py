"""Acceptance against the drafter's context: layer plans by kv_context, on the real services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.bench.configurations import Progress
from slipstream.bench.machine import cores
from slipstream.bench.questions import choose, encode, load_questions
from slipstream.bench.records import Prompt
from slipstream.bench.rows import Setup
from slipstream.bench.setups import Place, Running, start_setup
from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan
from slipstream.wire.proto import drafter_pb2, drafter_pb2_grpc
from slipstream.wire.transport import channel

MODES = ("own", "prompt", "commit")
_WARM_UP_TOKENS = 16
_STATUS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class KvSettings:
    """What to run.

    Attributes:
        plans: by name; see `naive_plans`.
        window: drafts ahead of the last commit, and most of a step.
        limit: at most so many questions; None for all.

    Raises:
        ConfigurationError: a number out of its range, an unknown mode, or no plan.
    """

    questions: Path
    model: Path
    model_name: str
    out: Path
    plans: Mapping[str, LayerPlan]
    modes: tuple[str, ...] = MODES
    window: int = 8
    limit: int | None = None
    max_tokens: int = 64

    def __post_init__(self) -> None:
        if not self.plans or not self.modes or set(self.modes) - set(MODES):
            raise ConfigurationError(f"bench kv needs a layer plan, and contexts of {MODES}")
        if min(self.max_tokens, self.window, 1 if self.limit is None else self.limit) < 1:
            raise ConfigurationError("limit, window and max-tokens must be at least 1")


@dataclass(frozen=True, slots=True)
class KvResult:
    """One plan with one context, over all questions.

    Attributes:
        drafted, accepted: by position in the drafts of a step.
        tokens: generated; `steps`: of the verifier.
        positions: of all prompts, but the last of each; how many of them were pulled.
        pull_seconds: from asking to the last byte; pull_wait_seconds: the part of it after the
            verifier had all of them, and so when drafts were missed.
        prefill_seconds: the drafter's own, of `prefilled` positions.
        pulled_bytes, refreshed_bytes: for prompts, and for committed positions.
        fallbacks: sequences left to the drafter's own computing, by reason.
    """

    plan: str
    mode: str
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    tokens: int
    steps: int
    seconds: float
    prompts: int
    pulled: int
    pull_seconds: float
    pull_wait_seconds: float
    prefilled: int
    prefill_seconds: float
    pulled_bytes: int
    refreshed_bytes: int
    fallbacks: Mapping[str, int]

    @property
    def acceptance(self) -> float | None:
        return sum(self.accepted) / sum(self.drafted) if sum(self.drafted) else None

    @property
    def by_position(self) -> list[float | None]:
        """The part of the drafts at each position that was accepted, all before it included."""
        pairs = zip(self.accepted, self.drafted, strict=True)
        return [a / d if d else None for a, d in pairs]

    @property
    def bytes_per_token(self) -> float:
        return (self.pulled_bytes + self.refreshed_bytes) / max(1, self.tokens)


def naive_plans(num_layers: int, precision: str = "int8") -> dict[str, LayerPlan]:
    """1, 2 and 4 attention sublayers and as many MLPs skipped, evenly spread over the model."""
    plans = {}
    for count in (1, 2, 4):
        step = num_layers / (count + 1)
        attention = frozenset(round(step * (i + 1)) for i in range(count))
        mlp = frozenset(round(step * (i + 0.5)) for i in range(count))
        plans[f"{count}+{count}"] = LayerPlan(
            precision=precision,  # type: ignore[arg-type]
            head_precision=precision,  # type: ignore[arg-type]
            skip_attention=attention,
            skip_mlp=mlp,
        )
    return plans


async def measure_kv(settings: KvSettings, progress: Progress) -> list[KvResult]:
    """Every plan with every context, one after the other. Ends every process that it starts.

    Raises:
        SlipstreamError: a file, model or service is not usable; the message says which.
    """
    questions = choose(load_questions(settings.questions), settings.limit)
    prompts, _ = encode(questions, settings.model, settings.max_tokens)
    logs = settings.out.parent / f"{settings.out.stem}-logs"
    place = Place(settings.model, logs, tuple(cores()))
    results = []
    for name, plan in settings.plans.items():
        logs.mkdir(parents=True, exist_ok=True)
        file = logs / f"{name}.plan.json"
        plan.save(file)
        for mode in settings.modes:
            setup = _setup(f"kv-{name}-{mode}", file, mode, settings.window)
            async with AsyncExitStack() as stack:
                running = await start_setup(stack, setup, place, drafter=True)
                result = await _measure(running, name, mode, prompts, settings.max_tokens)
            progress(f"{name} {mode}: acceptance {result.acceptance or 0:.3f}")
            results.append(result)
    return results


def _setup(name: str, plan: Path, mode: str, window: int) -> Setup:
    """One core each, nothing that drafts but the model, no more drafts or fewer than there are."""
    return Setup(
        name,
        "own",
        verifier_options=("--window", str(window), "--draft-length", str(window), "--ngram", "off"),
        drafter_options=(
            "--layer-plan", str(plan), "--kv-context", mode, "--ngram", "off",
            "--early-stop", "off",
        ),
    )  # fmt: skip


async def _measure(
    running: Running, name: str, mode: str, prompts: Sequence[Prompt], max_tokens: int
) -> KvResult:
    verifier = running.verifier
    await verifier.generate(prompts[0].token_ids, _WARM_UP_TOKENS, speculative=True)
    before, kv = await verifier.wait_until_idle(), await _counters(running.drafter)
    seconds = 0.0
    for prompt in prompts:
        generation, _ = await verifier.generate(prompt.token_ids, max_tokens, speculative=True)
        seconds += generation.seconds
    after, kv_after = await verifier.wait_until_idle(), await _counters(running.drafter)
    fallbacks = {
        reason: count - kv.fallbacks.get(reason, 0) for reason, count in kv_after.fallbacks.items()
    }
    return KvResult(
        plan=name,
        mode=mode,
        drafted=_grown(before.draft_tokens_per_position, after.draft_tokens_per_position),
        accepted=_grown(before.accepted_tokens_per_position, after.accepted_tokens_per_position),
        tokens=after.generated_tokens - before.generated_tokens,
        steps=after.steps - before.steps,
        seconds=seconds,
        prompts=len(prompts),
        pulled=kv_after.pulled_positions - kv.pulled_positions,
        pull_seconds=kv_after.pull_seconds - kv.pull_seconds,
        pull_wait_seconds=kv_after.pull_wait_seconds - kv.pull_wait_seconds,
        prefilled=kv_after.prefilled_positions - kv.prefilled_positions,
        prefill_seconds=kv_after.prefill_seconds - kv.prefill_seconds,
        pulled_bytes=kv_after.pulled_bytes - kv.pulled_bytes,
        refreshed_bytes=kv_after.refreshed_bytes - kv.refreshed_bytes,
        fallbacks={reason: count for reason, count in fallbacks.items() if count},
    )


def _grown(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    padded = [*before, *[0] * (len(after) - len(before))]
    return tuple(new - old for old, new in zip(padded, after, strict=True))


async def _counters(address: str) -> Any:
    async with channel(address) as link:
        stub = drafter_pb2_grpc.DrafterServiceStub(link)
        reply = await stub.GetDrafter(drafter_pb2.GetDrafterRequest(), timeout=_STATUS_SECONDS)
    return reply.kv
