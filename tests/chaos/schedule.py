"""What fails when: drawn from a seed, without end, within rules under which nothing may be lost.

The rules hold by the times of the schedule itself. What the storm finds otherwise when a fault is
due (somebody has not come back yet), it leaves out, and says so.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from tests.chaos.topology import STORE, Topology, ends, is_sealed, role_of

# SIGKILL; SIGSTOP, and SIGCONT later; SIGTERM; Redis is killed and has forgotten everything when it
# is back; all verifiers are killed at once.
PROCESS_KINDS = ("kill", "stop", "term", "empty", "blackout")
# Connections are reset; nothing passes, though they stay open; everything is late; bytes change.
LINK_KINDS = ("cut", "freeze", "delay", "corrupt")
KINDS = PROCESS_KINDS + LINK_KINDS
ROLES = ("gateway", "verifier", "drafter", STORE, "link")
ALL_VERIFIERS = "verifiers"

# Seconds that a fault lasts. For what ends a process: until it is started again.
_SECONDS = {
    "kill": (0.2, 3.0),
    "stop": (1.0, 8.0),
    "term": (0.2, 1.0),
    "empty": (0.2, 2.0),
    "blackout": (0.0, 0.5),
    "cut": (0.0, 2.0),
    "freeze": (1.0, 8.0),
    "delay": (2.0, 6.0),
    "corrupt": (0.5, 3.0),
}
_WEIGHTS = {
    "kill": 8, "stop": 5, "term": 5, "empty": 1, "blackout": 1,
    "cut": 5, "freeze": 3, "delay": 3, "corrupt": 4,
}  # fmt: skip
# Of targets. The rules spare verifiers most, and they are what it is about.
_ROLE_WEIGHTS = {"verifier": 4, "gateway": 2, "drafter": 2, STORE: 2, "verifiers": 1, "link": 1}
# Seconds from a start to serving, with all others busy on the same cores.
_START = {"gateway": 5.0, "verifier": 12.0, "drafter": 12.0, STORE: 1.0}
# Until others have noticed that a process or a link is well again.
_NOTICE = 3.0
# A process that loads torch takes seconds of a core: no more often than this.
_TORCH_GAP = 7.0
_EMPTY_GAP = 40.0
# While the store is away generations may be begun again: most of the time they may not.
_STORE_GAP = 25.0
_BLACKOUT_GAP = 45.0
_DRAWS = 50


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. Times in seconds.

    Attributes:
        at: since the storm's beginning.
        seconds: that it lasts; of what ends a process, until it is started again.
        shade: in [0, 1), for what else there is to choose: how late, which direction.
    """

    at: float
    kind: str
    target: str
    seconds: float
    shade: float = 0.0

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.kind:<8} {self.target:<24} {self.seconds:.1f} s"


@dataclass(slots=True)
class _Rules:
    """What the faults so far allow for the next one. Times by name of the target."""

    topology: Topology
    busy_until: dict[str, float] = field(default_factory=dict)
    away_until: dict[str, float] = field(default_factory=dict)
    torch_free: float = 0.0
    store_free: float = 4.0
    empty_free: float = 4.0
    blackout_free: float = 8.0

    def allow(self, fault: Fault) -> bool:
        if self.busy_until.get(fault.target, 0.0) > fault.at:
            return False
        if _starts_torch(fault) and fault.at < self.torch_free:
            return False
        if fault.kind == "empty" and fault.at < self.empty_free:
            return False
        if hits_store(fault) and fault.at < self.store_free:
            return False
        verifiers = self.topology.of("verifier")
        if fault.kind == "blackout":
            # All of them begin to come back at once, and nothing else holds them up.
            return fault.at >= self.blackout_free and not self._away(verifiers, fault.at)
        hit = verifier_lost(fault)
        if hit is None:
            return True
        # A verifier may go away, however it does, as long as another one serves every gateway. Of
        # one alone: if it is well now.
        others = [name for name in verifiers if name != hit] or [hit]
        return len(self._away(others, fault.at)) < len(others)

    def note(self, fault: Fault) -> None:
        over = fault.at + fault.seconds + _recovery(fault)
        self.busy_until[fault.target] = over
        if fault.kind == "blackout":
            for name in self.topology.of("verifier"):
                self.busy_until[name] = self.away_until[name] = over
            self.blackout_free = fault.at + _BLACKOUT_GAP
        elif (hit := verifier_lost(fault)) is not None:
            self.away_until[hit] = max(self.away_until.get(hit, 0.0), over)
        if _starts_torch(fault):
            self.torch_free = fault.at + _TORCH_GAP
        if hits_store(fault):
            self.store_free = fault.at + _STORE_GAP
        if fault.kind == "empty":
            self.empty_free = fault.at + _EMPTY_GAP

    def _away(self, names: list[str], now: float) -> list[str]:
        return [name for name in names if self.away_until.get(name, 0.0) > now]


def _starts_torch(fault: Fault) -> bool:
    ends_it = fault.kind in ("kill", "term", "blackout")
    return ends_it and fault.target.startswith(("verifier", "drafter"))


def hits_store(fault: Fault) -> bool:
    """Whether somebody cannot reach the store because of it, or only late."""
    return fault.target == STORE or ends(fault.target)[1] == STORE


def verifier_lost(fault: Fault) -> str | None:
    """The verifier that gateways, or one of them, lose by this fault; of a blackout, none alone."""
    role = role_of(fault.target)
    if role == "verifier":
        return fault.target
    if role != "link" or fault.kind == "delay":
        return None
    one, other = ends(fault.target)
    return other if one.startswith("gateway") and other.startswith("verifier") else None


def _recovery(fault: Fault) -> float:
    if fault.kind in ("kill", "term", "empty", "blackout"):
        role = "verifier" if fault.kind == "blackout" else role_of(fault.target)
        return _START[role] + _NOTICE
    return _NOTICE


def choices(topology: Topology, kinds: Collection[str], roles: Collection[str]) -> list[Fault]:
    """Everything that can fail, each once, at no time."""
    found = []
    for name in topology.processes:
        role = role_of(name)
        if role in roles:
            found += [(kind, name) for kind in ("kill", "stop", "term") if kind in kinds]
            found += [("empty", name)] if role == STORE and "empty" in kinds else []
    if "blackout" in kinds and "verifier" in roles:
        found.append(("blackout", ALL_VERIFIERS))
    if "link" in roles:
        found += [
            (kind, name)
            for name in topology.links
            for kind in LINK_KINDS
            if kind in kinds and (kind != "corrupt" or is_sealed(name))
        ]
    return [Fault(0.0, kind, target, 0.0) for kind, target in found]


def schedule(
    seed: int,
    topology: Topology,
    *,
    kinds: Collection[str] = KINDS,
    roles: Collection[str] = ROLES,
    every: float = 2.0,
) -> Iterator[Fault]:
    """Faults in the order of their times, without end; the same for the same arguments.

    Args:
        every: mean seconds from one to the next. Where the rules forbid all that is drawn for a
            moment, that moment passes.
    """
    draw = random.Random(f"faults/{seed}")
    rules = _Rules(topology)
    possible = choices(topology, kinds, roles)
    by_kind = {kind: [each for each in possible if each.kind == kind] for kind in KINDS}
    drawn = [kind for kind in KINDS if by_kind[kind]]
    weights = [_WEIGHTS[kind] for kind in drawn]
    now = 0.0
    while drawn:
        now += min(max(0.2, draw.expovariate(1 / every)), 3 * every)
        for _ in range(_DRAWS):
            kind = draw.choices(drawn, weights)[0]
            targets = [each.target for each in by_kind[kind]]
            heavy = [_ROLE_WEIGHTS[role_of(target)] for target in targets]
            target = draw.choices(targets, heavy)[0]
            seconds = round(draw.uniform(*_SECONDS[kind]), 2)
            fault = Fault(round(now, 2), kind, target, seconds, draw.random())
            if rules.allow(fault):
                rules.note(fault)
                yield fault
                break
