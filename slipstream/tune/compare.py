"""`slipstream tune compare`: plans beside the naive ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from slipstream.core.layer_plan import LayerPlan
from slipstream.engine.model_files import ModelFolder
from slipstream.tune.budget import Budget
from slipstream.tune.confirm import Confirmed
from slipstream.tune.finals import Row, confirmed_rows, folder_at
from slipstream.tune.plans import naive_plans
from slipstream.tune.settings import TuneSettings
from slipstream.tune.workbench import set_up


def compare(
    settings: TuneSettings,
    plans: Mapping[str, LayerPlan],
    *,
    work: Path,
    repeats: int,
    say: Callable[[str], None],
) -> tuple[tuple[Row, ...], Confirmed | None]:
    """Plans beside the naive ones, on prompts that no search has seen.

    Args:
        repeats: how often each runs in the real pipeline; 0 leaves that out.

    Raises:
        ModelMismatch: a plan is for another model.
        SlipstreamError: a file, the model, a setting or a service is not usable.
    """
    folder_at(work)
    folder = ModelFolder(settings.model)
    for plan in plans.values():
        plan.check(folder.fingerprint, folder.config.num_hidden_layers)
    bench = set_up(settings, Budget(), say)
    evaluator = bench.evaluator(bench.measure_verify(), {})
    naive = naive_plans(bench.layers, bench.automatic)
    # A file may have the name of a naive plan.
    beside = {f"{name} (naive)" if name in plans else name: naive[name] for name in naive}
    named: dict[LayerPlan, str] = {}
    for name, plan in {**plans, **beside}.items():
        unbound = replace(plan, model_fingerprint="")
        if named.setdefault(unbound, name) != name:
            say(f"{name} is the same plan as {named[unbound]}")
    rows = []
    for plan, name in named.items():
        *_, estimate = evaluator.evaluate(plan)
        rows.append(Row(name, plan, estimate))
        say(f"{name}: {estimate.tokens_per_second:.1f} tokens/s by measured parts")
    rows.sort(key=lambda row: -row.estimate.tokens_per_second)
    if not repeats:
        return tuple(rows), None
    return confirmed_rows(bench, rows, work, repeats, say)
