"""What `slipstream tune` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from slipstream.core.errors import ConfigurationError
from slipstream.core.throughput import Placement
from slipstream.tune.drafting import KvContext

TUNING_PROMPTS = Path(__file__).with_name("prompts.jsonl")


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """Attributes:

    model: model folder; dtype, device: as the services take them.
    prompts: question file in Spec-Bench's format; limit: at most so many of it.
    max_tokens: of an answer.
    kv_context, placement: what the drafter will have in production.
    copies_gib: weights of copies at several precisions that are kept loaded at once.
    drafter_slowdown: how many times as long a draft step takes on the drafter's device as on this
        machine.
    threads: that a model computes on; 0: half of the cores, or all where the two share them.
    """

    model: Path
    model_name: str
    prompts: Path = TUNING_PROMPTS
    limit: int | None = None
    max_tokens: int = 64
    kv_context: KvContext = "prompt"
    placement: Placement = "separate"
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 0
    drafter_slowdown: float = 1.0
    kv_cache_gib: float = 1.0
    copies_gib: float = 4.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kv-context", self.kv_context, get_args(KvContext)),
            ("placement", self.placement, get_args(Placement)),
            ("dtype", self.dtype, ("auto", "bfloat16", "float32")),
        ):
            if value not in known:
                raise ConfigurationError(f"--{name} is one of {', '.join(known)}, got {value!r}")
        if min(self.max_tokens, 1 if self.limit is None else self.limit) < 1 or self.threads < 0:
            raise ConfigurationError("limit, max-tokens and threads cannot be below 1, 1 and 0")
        if not 1.0 <= self.drafter_slowdown < float("inf"):
            raise ConfigurationError(
                f"--drafter-slowdown cannot be below 1, got {self.drafter_slowdown:g}: no plan can"
                " be tried on a drafter that is faster than this machine"
            )
