"""The models of one tuning run, in this process: the full one with its answers, and copies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from slipstream.bench.machine import cores
from slipstream.bench.questions import choose, encode, load_questions
from slipstream.bench.records import Prompt
from slipstream.core.layer_plan import HeadPrecision, LayerPlan
from slipstream.engine.automatic_plan import automatic_plan
from slipstream.engine.checkpoint import load_model
from slipstream.engine.exactness import choose_shapes
from slipstream.engine.model_files import ModelFolder
from slipstream.engine.placement import place, resolve_device
from slipstream.engine.screened_head import screening_pays
from slipstream.models.head_basis import head_basis
from slipstream.tune.answers import Answer, answer
from slipstream.tune.bounded import BoundedRunner
from slipstream.tune.budget import Budget
from slipstream.tune.copies import Copies
from slipstream.tune.costs import VerifyCost, measure_verify
from slipstream.tune.evaluate import Evaluator
from slipstream.tune.minimum import Minimum, forecast
from slipstream.tune.plans import PRECISIONS, SCREENED
from slipstream.tune.settings import TuneSettings

_LOADING = "loading"


@dataclass(frozen=True)
class Workbench:
    """Attributes:

    layers: decoder layers of the model.
    heads: precisions that its output projection can have.
    automatic: the plan that is taken where none was found by measuring.
    minimum: what the budget must hold at least.
    start_seconds: from the beginning of the run until the full model could serve, less those in
        which its head was calibrated, once for the model.
    """

    settings: TuneSettings
    fingerprint: str
    layers: int
    heads: tuple[HeadPrecision, ...]
    automatic: LayerPlan
    prompts: tuple[Prompt, ...]
    full: BoundedRunner
    answers: tuple[Answer, ...]
    copies: Copies
    budget: Budget
    minimum: Minimum
    start_seconds: float

    def identity(self) -> dict[str, Any]:
        """What two searches have in common if one can go on with the other's results."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(json.dumps([prompt.token_ids for prompt in self.prompts]).encode())
        settings = self.settings
        return {
            "model": self.fingerprint,
            "prompts": digest.hexdigest(),
            "max_tokens": settings.max_tokens,
            "kv_context": settings.kv_context,
            "placement": settings.placement,
            "drafter_slowdown": settings.drafter_slowdown,
            "dtype": settings.dtype,
            "heads": list(self.heads),
        }

    def measure_verify(self) -> VerifyCost:
        return measure_verify(self.full)

    def evaluator(
        self, verify: VerifyCost, costs: MutableMapping[str, dict[str, Any]]
    ) -> Evaluator:
        return Evaluator(
            self.full,
            self.answers,
            self.copies,
            verify,
            costs,
            kv_context=self.settings.kv_context,
            placement=self.settings.placement,
            slowdown=self.settings.drafter_slowdown,
        )

    def of_model(self, plan: LayerPlan) -> LayerPlan:
        """The plan, bound to this model."""
        return LayerPlan(
            plan.precision,
            plan.head_precision,
            plan.skip_attention,
            plan.skip_mlp,
            self.fingerprint,
        )


def set_up(
    settings: TuneSettings, budget: Budget, say: Callable[[str], None], *, resumed: bool = False
) -> Workbench:
    """Loads the model and answers the prompts.

    Args:
        resumed: a search that is taken up has measured the steps' times already.

    Raises:
        ConfigurationError: the budget is too small to measure one plan.
        SlipstreamError: the model, the prompts or the device are not usable.
    """
    questions = choose(load_questions(settings.prompts), settings.limit)
    prompts, left_out = encode(questions, settings.model, settings.max_tokens)
    if left_out:
        say(f"left out, longer than the model's context: questions {', '.join(left_out)}")
    device = resolve_device(settings.device)
    share = 1 if settings.placement == "shared" else 2
    place("", settings.threads or max(1, len(cores()) // share), device)
    folder = ModelFolder(settings.model)
    pays = screening_pays(folder.config.vocab_size, folder.config.hidden_size)
    began = budget.spent
    basis = head_basis(folder.path, folder.fingerprint) if pays else None
    calibrated = budget.spent - began

    def load(plan: LayerPlan) -> BoundedRunner:
        with budget.unit(_LOADING):
            loaded = load_model(
                folder, dtype=settings.dtype, device=device, plan=plan, head_basis=basis
            )
            return BoundedRunner(loaded, int(settings.kv_cache_gib * 2**30), budget)

    say("loading the model")
    full = load(LayerPlan())
    with full.unbounded():
        minimum = forecast(
            full,
            prompts,
            settings.max_tokens,
            budget,
            loading=budget.expected(_LOADING) or 0.0,
            resumed=resumed,
        )
    with minimum.held_by(budget):
        # Pads its steps as the verifier will.
        choose_shapes(full, "auto")
        # Services find the head calibrated.
        ready = budget.spent - calibrated
        say(f"answering {len(prompts)} prompts")
        answers = answer(full, prompts, settings.max_tokens, temperature=0.0, seed=0)
    return Workbench(
        settings=settings,
        fingerprint=folder.fingerprint,
        layers=folder.config.num_hidden_layers,
        heads=SCREENED if basis else PRECISIONS,
        automatic=automatic_plan(folder),
        prompts=tuple(prompts),
        full=full,
        answers=tuple(answers),
        copies=Copies(load, int(settings.copies_gib * 2**30)),
        budget=budget,
        minimum=minimum,
        start_seconds=ready,
    )
