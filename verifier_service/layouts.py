"""Where verifier and drafter compute: each on cores of its own, in turn on all, or the first alone.

On one small machine the two compete for cores and for memory bandwidth. Side by side they overlap,
each at half the machine's speed; taking turns, each has all of it but waits for the other; and
where prompts keep the cores busy, no draft may be worth its time. Which is fastest depends on
model, machine and load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Drafter:
    """Where a drafter may compute: a host by name, and its cores; none: another device."""

    host: str
    cores: frozenset[int]


@dataclass(frozen=True, slots=True)
class Layout:
    """Who computes where.

    Attributes:
        name: for people.
        verifier_cores, drafter_cores: empty leaves them as they are.
        burst: they take turns: the drafter makes a run while the verifier waits for it.
        drafts: whether there are any.
    """

    name: str
    verifier_cores: tuple[int, ...] = ()
    drafter_cores: tuple[int, ...] = ()
    burst: bool = False
    drafts: bool = True

    @property
    def in_turn(self) -> bool:
        """Whether the verifier waits for drafts that are made on its cores."""
        return self.burst and self.drafts


def layouts(wanted: str, own: Drafter, drafter: Drafter | None) -> tuple[Layout, ...]:
    """The ways to compute that come into question, in the order in which to try them.

    Args:
        wanted: separate, shared or auto.
        own: where the verifier computes.
        drafter: where its drafter does; None where there is none.
    """
    everything = tuple(sorted(own.cores))
    if drafter is None:
        return (Layout("alone", everything),)
    common = tuple(sorted(own.cores & drafter.cores)) if own.host == drafter.host else ()
    if not common:
        # Each has a device of its own, or nobody knows better than whoever said `shared`.
        return (Layout(wanted if wanted == "shared" else "separate", burst=wanted == "shared"),)
    half = (len(common) + 1) // 2
    apart = Layout("separate", common[:half], common[half:] or common)
    turns = Layout("shared", everything, tuple(sorted(drafter.cores)), burst=True)
    plain = replace(turns, name="plain", drafts=False)
    return {"separate": (apart,), "shared": (turns,)}.get(wanted, (apart, turns, plain))
