"""Sixteen requests at once against the same ones alone, on the same verifier core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from slipstream.bench.bars import Bar
from slipstream.bench.configurations import Progress
from slipstream.bench.load.asks import Extras
from slipstream.bench.load.book import Entry
from slipstream.bench.load.drive import in_turn, together
from slipstream.bench.load.outcomes import Outcome
from slipstream.bench.load.serve import (
    Findings,
    ServeSettings,
    answers_of,
    fault_bar,
    leak_bar,
    leak_checks,
    started,
)
from slipstream.bench.load.stack import Stack
from slipstream.bench.load.statistics import Figures, figures
from slipstream.bench.load.workload import dialogues_of_length
from slipstream.bench.machine import cores
from slipstream.bench.measure import order

_AT_ONCE = 16
# Of every answer: enough that the prompts, which no batch makes cheaper, are a small part.
_TOKENS = 256
_LEAST_SPEEDUP = 6.0
_MOST_STEPS_A_GAP = 3.0
_PLAIN_ALONE, _PLAIN = "one at a time, plain", "16 at once, plain"
_AUTOMATIC = "16 at once, automatic"


@dataclass(slots=True)
class _Row:
    """Outcomes of all repeats, and the verifier's steps meanwhile."""

    outcomes: list[Outcome]
    seconds: float = 0.0
    steps: int = 0
    step_seconds: float = 0.0

    @property
    def mean_step(self) -> float:
        return self.step_seconds / self.steps if self.steps else 0.0


async def batch(settings: ServeSettings, progress: Progress) -> tuple[Findings, list[Outcome]]:
    """Greedy requests of equal length. The verifier has the first core, the drafter the second.

    Raises:
        SlipstreamError: the stack did not start, or could not tell the known answers.
    """
    cpus = cores()
    first, second = str(cpus[0]), str(cpus[min(1, len(cpus) - 1)])
    words = ["--placement", "separate", "--verifier-cpus", first, "--drafter-cpus", second]
    dialogues = dialogues_of_length(settings.workload, _AT_ONCE, _TOKENS)
    rows = {name: _Row([]) for name in (_PLAIN_ALONE, _PLAIN, _AUTOMATIC)}
    async with started(settings, "batch", words, progress) as stack:
        book = await answers_of(stack, dialogues, settings, progress)
        await together(stack.door, book.entries, Extras(cache_salt="warm"))
        async with leak_checks(progress, stack) as left:
            for repeat in range(max(2, settings.repeats)):
                for name in order(list(rows), repeat):
                    row = rows[name]
                    await _take(stack, book.entries, name, f"{name} {repeat}", row)
                    speed = _figures(row, settings).tokens_per_second
                    progress(f"{name}: {speed:.1f} tokens/s")
    found = {name: _figures(row, settings) for name, row in rows.items()}
    everything = [each for row in rows.values() for each in row.outcomes]
    bars = (*_bars(found, rows), leak_bar(left), fault_bar(everything))
    steps = {name: row.mean_step for name, row in rows.items()}
    details = {name: asdict(each) | {"mean_step": steps[name]} for name, each in found.items()}
    return Findings("batch16", bars, {"rows": details}, _lines(found, steps)), everything


async def _take(stack: Stack, entries: Sequence[Entry], name: str, salt: str, row: _Row) -> None:
    before = await stack.verifier.wait_until_idle()
    speculative = name == _AUTOMATIC
    extras = Extras(speculative=speculative, cache_salt=salt)
    if name == _PLAIN_ALONE:
        outcomes = await in_turn(stack.door, entries, extras)
    else:
        outcomes = await together(stack.door, entries, extras)
    after = await stack.verifier.wait_until_idle()
    row.outcomes += outcomes
    row.seconds += max(each.due + each.e2e for each in outcomes)
    row.steps += after.steps - before.steps
    row.step_seconds += after.step_seconds - before.step_seconds


def _figures(row: _Row, settings: ServeSettings) -> Figures:
    return figures(row.outcomes, settings.slo, row.seconds)


def _bars(found: dict[str, Figures], rows: dict[str, _Row]) -> list[Bar]:
    alone = found[_PLAIN_ALONE].tokens_per_second
    bars = []
    for name in (_AUTOMATIC, _PLAIN):
        speed = found[name].tokens_per_second / alone if alone > 0 else None
        bars.append(Bar(f"{name} / {_PLAIN_ALONE}, tokens/s", speed, _LEAST_SPEEDUP, at_least=True))
        gap, step = found[name].gap, rows[name].mean_step
        steps = gap.p95 / step if gap is not None and step > 0 else None
        what = f"{name}: p95 chunk gap / mean step"
        bars.append(Bar(what, steps, _MOST_STEPS_A_GAP, at_least=False))
    return bars


def _lines(found: dict[str, Figures], steps: dict[str, float]) -> tuple[str, ...]:
    return tuple(
        f"{name}: {each.tokens_per_second:.1f} tokens/s, mean step {1000 * steps[name]:.1f} ms"
        + ("" if each.gap is None else f", p95 chunk gap {1000 * each.gap.p95:.1f} ms")
        for name, each in found.items()
    )
