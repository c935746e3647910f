"""What Locust shows of a load beyond its own: TTFT, TPOT, chunk gaps, goodput, and faults."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slipstream.bench.load.outcomes import FAULTS, Outcome, Verdict
from slipstream.bench.load.statistics import Figures, Latency, Slo, figures

_SHOWN_FAULTS = 20
_TIMES = ("ttft", "tpot", "gap", "e2e")


class WrongAnswer(Exception):
    """An answer that is not the known one, or not all of it, or none."""


class Tally:
    """Collects the outcomes of one Locust process.

    Rows of Locust's table that are no requests (TTFT and the like, in milliseconds) leave its
    totals alone.

    Args:
        environment: Locust's.
        allow_refusals: whether being turned away for overload is part of the scenario.

    Attributes:
        asked: requests that were sent; `outcomes` of them are known.
    """

    def __init__(self, environment: Any, slo: Slo, *, allow_refusals: bool) -> None:
        self._environment = environment
        self._slo = slo
        self._allow_refusals = allow_refusals
        self.asked = 0
        self.outcomes: list[Outcome] = []

    def add(self, protocol: str, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        name, verdict = outcome.kind, outcome.verdict
        if verdict in (Verdict.CANCELLED, Verdict.REFUSED):
            self._row(str(verdict), name, outcome.e2e)
        if verdict is Verdict.CANCELLED and outcome.ttft is None:
            self._row("cancelled early", name, outcome.e2e)
        if verdict is Verdict.CANCELLED or (verdict is Verdict.REFUSED and self._allow_refusals):
            return
        bad = verdict in FAULTS or verdict is Verdict.REFUSED
        self._environment.events.request.fire(
            request_type=protocol,
            name=name,
            response_time=1000 * outcome.e2e,
            response_length=outcome.tokens,
            exception=WrongAnswer(f"{verdict}: {outcome.detail}") if bad else None,
            context={},
        )
        if not bad:
            self._times(outcome)

    def _times(self, outcome: Outcome) -> None:
        if outcome.ttft is not None:
            self._row("TTFT", outcome.kind, outcome.ttft)
        if outcome.tpot is not None:
            self._row("TPOT", outcome.kind, outcome.tpot)
        for gap in outcome.gaps:
            self._row("chunk gap", outcome.kind, gap)
        if self._slo.kept(outcome):
            limits = f"TTFT {self._slo.ttft:g} s, TPOT {1000 * self._slo.tpot:g} ms"
            self._row("goodput", limits, outcome.e2e)

    def _row(self, method: str, name: str, seconds: float) -> None:
        self._environment.stats.get(name, method).log(1000 * seconds, 0)

    @property
    def unheard(self) -> int:
        """Requests of which nothing is known: Locust ended their users."""
        return max(0, self.asked - len(self.outcomes))

    @property
    def exit_code(self) -> int:
        """0 only if there were answers, none is a fault, and none is still waited for."""
        found = figures(self.outcomes, self._slo)
        refused = found.verdicts.get(Verdict.REFUSED, 0)
        answered = found.requests - refused - found.verdicts.get(Verdict.CANCELLED, 0)
        faults = found.faults + self.unheard
        return int(faults > 0 or (refused > 0 and not self._allow_refusals) or answered == 0)

    def write(self, prefix: Path) -> None:
        """PREFIX_slo.csv with one line a kind and one for all; PREFIX_outcomes.json with it all."""
        kinds = sorted({each.kind for each in self.outcomes})
        groups = {kind: [o for o in self.outcomes if o.kind == kind] for kind in kinds}
        whole = figures(self.outcomes, self._slo)
        seconds = whole.seconds
        rows = {kind: figures(some, self._slo, seconds) for kind, some in groups.items()}
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with Path(f"{prefix}_slo.csv").open("w", newline="", encoding="utf-8") as file:
            lines = [_line(kind, found) for kind, found in {**rows, "all": whole}.items()]
            writer = csv.DictWriter(file, fieldnames=list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        faults = [asdict(each) for each in self.outcomes if each.verdict in FAULTS]
        content = {
            "slo": asdict(self._slo),
            "figures": asdict(whole),
            "unheard": self.unheard,
            "by_kind": {kind: asdict(found) for kind, found in rows.items()},
            "faults": faults[:_SHOWN_FAULTS],
        }
        text = json.dumps(content, indent=2) + "\n"
        Path(f"{prefix}_outcomes.json").write_text(text, encoding="utf-8")


def _line(kind: str, found: Figures) -> dict[str, Any]:
    line: dict[str, Any] = {"kind": kind, "requests": found.requests}
    line |= {str(verdict): found.verdicts.get(verdict, 0) for verdict in Verdict}
    line |= {
        "tokens/s": f"{found.tokens_per_second:.2f}",
        "requests/s": f"{found.requests_per_second:.3f}",
        "goodput/s": f"{found.goodput_per_second:.3f}",
        "goodput share": f"{found.goodput_share:.3f}",
        "cached share": f"{found.cached_share:.3f}",
    }
    for time in _TIMES:
        latency: Latency | None = getattr(found, time)
        for part in ("mean", "p50", "p95", "p99", "most"):
            value = "" if latency is None else f"{1000 * getattr(latency, part):.1f}"
            line[f"{time} {part} ms"] = value
    return line
