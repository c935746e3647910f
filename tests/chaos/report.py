"""The figures of a storm: a table for people, JSON for the rest, and whether all is well."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.chaos.crowd import Outcome
from tests.chaos.session_client import SessionLog
from tests.chaos.storm import Struck
from tests.chaos.topology import role_of
from tests.chaos.verdict import Finding, Verdict, tally

_SHOWN = 20


@dataclass(slots=True)
class Report:
    """Everything that came out.

    Attributes:
        seconds: of the storm.
        sessions_kept: by id, what is wrong with those that the store should have.
        wrong_processes: what processes did that no fault explains, or who did not come back.
        held: what the stack still holds.
    """

    seed: int
    seconds: float = 0.0
    struck: Sequence[Struck] = ()
    outcomes: Sequence[Outcome] = ()
    sessions: Sequence[SessionLog] = ()
    unstored: int = 0
    sessions_kept: Mapping[str, Finding] = field(default_factory=dict)
    wrong_processes: Sequence[str] = ()
    held: Sequence[str] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    lives: Mapping[str, int] = field(default_factory=dict)

    @property
    def findings(self) -> dict[str, str]:
        """Everything that is wrong, by what it is wrong with."""
        wrong = {
            f"{o.name} ({o.way}) #{place}": f"{o.finding.verdict}: {o.finding.detail}"
            for place, o in enumerate(self.outcomes)
            if o.finding.verdict is not Verdict.RIGHT
        }
        wrong |= {
            f"session {name}": f"{finding.verdict}: {finding.detail}"
            for name, finding in self.sessions_kept.items()
            if finding.verdict is not Verdict.RIGHT
        }
        wrong |= {f"process #{i}": line for i, line in enumerate(self.wrong_processes)}
        return wrong | {f"held #{i}": line for i, line in enumerate(self.held)}

    @property
    def exit_code(self) -> int:
        return int(bool(self.findings) or not self.outcomes)

    @property
    def pauses(self) -> list[float]:
        """The longest silence within each streamed answer, in seconds, ascending."""
        gaps = (
            max((b - a for a, b in pairwise(outcome.answer.arrivals)), default=None)
            for outcome in self.outcomes
        )
        return sorted(gap for gap in gaps if gap is not None)

    def content(self) -> dict[str, Any]:
        """For the JSON file."""
        verdicts = tally({str(i): o.finding for i, o in enumerate(self.outcomes)})
        turns = sum(len(session.acknowledged) for session in self.sessions)
        lost = [f for f in self.sessions_kept.values() if f.verdict is not Verdict.RIGHT]
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "generations": len(self.outcomes),
            "verdicts": verdicts,
            "ways": _ways(self.outcomes),
            "faults": _faults(self.struck),
            "left_out": sum(bool(each.skipped) for each in self.struck),
            "schedule": [asdict(each.fault) | {"skipped": each.skipped} for each in self.struck],
            "sessions": {
                "begun": len(self.sessions),
                "begun_again": sum(session.id[-1] != "0" for session in self.sessions),
                "turns_acknowledged": turns,
                "turns_unstored": self.unstored,
                "checked": len(self.sessions_kept),
                "wrong": len(lost),
            },
            "pauses_seconds": {
                "p50": quantile(self.pauses, 0.5),
                "p95": quantile(self.pauses, 0.95),
                "max": quantile(self.pauses, 1.0),
            },
            "counters": dict(sorted(self.counters.items())),
            "starts": dict(self.lives),
            "findings": self.findings,
        }

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.content(), indent=2) + "\n", encoding="utf-8")

    def lines(self) -> list[str]:
        """For people."""
        content = self.content()
        verdicts, pauses, sessions = (
            content[key] for key in ("verdicts", "pauses_seconds", "sessions")
        )
        lines = ["", f"{'faults':<10}" + "".join(f"{role:>10}" for role in _ROLES)]
        for kind, counts in content["faults"].items():
            lines.append(f"{kind:<10}" + "".join(f"{counts.get(r, 0) or '':>10}" for r in _ROLES))
        lines += ["", f"{len(self.outcomes)} generations in {self.seconds:.0f} s of storm, seed"]
        lines[-1] += f" {self.seed}; {content['left_out']} faults left out"
        lines.append("  " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
        came = (
            ", ".join(f"{count} {way}" for way, count in content["ways"].items()) or "all at once"
        )
        lines.append(f"came by the rest: {came}")
        lines.append(
            f"sessions: {sessions['begun']} begun, {sessions['begun_again']} of them again,"
            f" {sessions['turns_acknowledged']} turns acknowledged, {sessions['turns_unstored']}"
            f" not stored, {sessions['checked']} checked, {sessions['wrong']} wrong"
        )
        lines.append(
            "longest pause of a stream: "
            + ", ".join(f"{name} {value:.2f} s" for name, value in pauses.items())
        )
        lines += [f"  {name}: {value}" for name, value in content["counters"].items() if value]
        wrong = [f"{name}: {what}" for name, what in content["findings"].items()]
        lines += ["", "nothing is wrong" if not wrong else f"WRONG, {len(wrong)}:", *wrong[:_SHOWN]]
        return lines


_ROLES = ("gateway", "verifier", "drafter", "store", "link")


def _faults(struck: Sequence[Struck]) -> dict[str, dict[str, int]]:
    """Counts of those that were not left out, by kind and role."""
    found: dict[str, Counter[str]] = {}
    for each in struck:
        if not each.skipped:
            role = role_of(each.fault.target)
            role = "verifier" if role == "verifiers" else role
            found.setdefault(each.fault.kind, Counter())[role] += 1
    return {kind: dict(counts) for kind, counts in sorted(found.items())}


def _ways(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How clients came by what a fault had cut off."""
    total: Counter[str] = Counter()
    for outcome in outcomes:
        total.update(outcome.answer.ways)
    return {
        way: total[way] for way in ("resumed", "repeated", "polled", "begun again") if total[way]
    }


def quantile(values: Sequence[float], part: float) -> float:
    """Of ascending values; 0 of none."""
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0.0
