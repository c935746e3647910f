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
from slipstream.engine.runner import ModelRunner
from slipstream.engine.screened_head import screening_pays
from slipstream.models.head_basis import head_basis
from slipstream.tune.answers import Answer, answer
from slipstream.tune.copies import Copies
from slipstream.tune.costs import VerifyCost, measure_verify
from slipstream.tune.evaluate import Evaluator
from slipstream.tune.plans import PRECISIONS, SCREENED
from slipstream.tune.settings import TuneSettings


@dataclass(frozen=True)
class Workbench:
    """Attributes:

    layers: decoder layers of the model.
    heads: precisions that its output projection can have.
    automatic: the plan that is taken where none was found by measuring.
    """

    settings: TuneSettings
    fingerprint: str
    layers: int
    heads: tuple[HeadPrecision, ...]
    automatic: LayerPlan
    prompts: tuple[Prompt, ...]
    full: ModelRunner
    answers: tuple[Answer, ...]
    copies: Copies

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


def set_up(settings: TuneSettings, say: Callable[[str], None]) -> Workbench:
    """Loads the model and answers the prompts.

    Raises:
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
    basis = head_basis(folder.path, folder.fingerprint) if pays else None

    def load(plan: LayerPlan) -> ModelRunner:
        loaded = load_model(
            folder, dtype=settings.dtype, device=device, plan=plan, head_basis=basis
        )
        return ModelRunner(loaded, int(settings.kv_cache_gib * 2**30))

    say("loading the model")
    full = load(LayerPlan())
    # Pads its steps as the verifier will.
    choose_shapes(full, "auto")
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
    )
