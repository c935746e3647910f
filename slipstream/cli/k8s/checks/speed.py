"""Whether the ways between pods are short enough, and drafts worth their cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slipstream.cli.k8s.findings import Finding, note, ok, warning
from slipstream.cli.k8s.release import Release
from slipstream.cli.k8s.told import Told, drafters, gateways, verifiers

# So many rounds, drafts and steps say something.
_ROUNDS = 50
_DRAFTS = 200
# A gateway's way to a verifier costs a first token this much at most without a word.
_WAY_SECONDS = 0.02
_LOW_ACCEPTANCE = 0.5
# The drafter's own speed bounds the gain (see docs/drafting.md): so close to the verifier's, drafts
# that are nearly always right bring a few percent.
_LEAST_RATIO = 1.1
_WORTH = 1.05
_ABSENT_SECONDS, _ABSENT_SHARE = 120.0, 0.1


def check_latency(told: list[Told]) -> Iterator[Finding]:
    """A round between verifier and drafter fits into a step; gateways are close to verifiers."""
    ways = {
        (one.pod, each["address"]): each["round_trip_seconds"]
        for one in gateways(told)
        for each in (one.ready or {}).get("verifiers") or ()
        if each.get("round_trip_seconds") is not None
    }
    for (pod, address), seconds in ways.items():
        if seconds > _WAY_SECONDS:
            yield warning(
                "gateway-far",
                pod,
                f"{_ms(seconds)} to verifier {address} and back: every first token takes that"
                " longer",
                "run gateways in the verifiers' zone; if they are, a node is short of CPU",
            )
    if ways and max(ways.values()) <= _WAY_SECONDS:
        slowest = _ms(max(ways.values()))
        yield ok("gateway-way", "gateways", f"at most {slowest} to the verifiers and back")
    for one in verifiers(told):
        if one.status is not None and one.status.round_trips >= _ROUNDS:
            yield _round(one, one.status)


def _round(one: Told, status: Any) -> Finding:
    """The way there and back and one draft, against a step: what is longer is waited for."""
    # The verifier's own rounds contain the drafting of one token.
    way = max(0.0, status.round_trip_seconds - status.draft_step_seconds)
    step = status.plain_step_seconds
    text = (
        f"{_ms(status.round_trip_seconds)} from a commit to the drafter's next draft, of which"
        f" {_ms(way)} are on the way; a step takes {_ms(step)}"
    )
    if step <= 0 or status.round_trip_seconds <= step:
        return ok("round-trip", one.pod, f"{text}: a round fits into a step")
    if way > status.draft_step_seconds:
        return warning(
            "round-trip-long",
            one.pod,
            f"{text}: drafts come too late for the next step",
            "put drafters into the verifiers' zone (drafter.affinity; the chart prefers it), or"
            " on a faster network",
        )
    return warning(
        "draft-step-long",
        one.pod,
        f"{text}: drafting one token takes too long",
        "give the drafter a faster device, or a cheaper layer plan: `slipstream tune`,"
        " tune.enabled",
    )


def check_pairing(told: list[Told], release: Release) -> Iterator[Finding]:
    """Every verifier has a drafter, in its zone where there is one."""
    if not release.wanted("drafter"):
        if verifiers(told):
            text = "no drafters: the verifiers' n-gram guesses alone speed decoding up"
            yield note("no-drafters", release.name, text)
        return
    zones = {one.address: _zone(one) for one in drafters(told)}
    paired = 0
    for one in verifiers(told):
        assert one.status is not None
        if not one.status.drafter_connected:
            yield warning(
                "no-drafter",
                one.pod,
                f"it has no drafter: {one.status.drafter_detail}",
                "see the findings on drafters; then its log, the NetworkPolicy between the two,"
                " and its right to watch EndpointSlices",
            )
            continue
        paired += 1
        here, there = _zone(one), zones.get(_host(one.status.drafter_address), "")
        if here and there and here != there:
            near = here in zones.values()
            yield warning(
                "zones-apart",
                one.pod,
                f"it is in zone {here}, its drafter in {there}",
                "a drafter of its own zone is there and taken: add drafter replicas"
                if near
                else f"place a drafter in zone {here}: drafter.affinity or topologySpread",
            )
        share = one.status.without_drafter_seconds / max(1.0, one.running_seconds)
        if one.status.without_drafter_seconds > _ABSENT_SECONDS and share > _ABSENT_SHARE:
            yield warning(
                "drafter-absent",
                one.pod,
                f"it was without a drafter for {one.status.without_drafter_seconds:.0f} s,"
                f" {share:.0%} of its time, and connected {one.status.drafter_connections} times",
                "see why drafters restart or start late; raise drafter.replicas so that another"
                " one takes over",
            )
    if paired:
        yield ok("pairing", release.name, f"{paired} verifiers have a drafter")


def check_worth(told: list[Told], release: Release) -> Iterator[Finding]:
    """What drafts bring."""
    if not release.wanted("drafter"):
        return
    plans = {one.drafter.layer_plan for one in drafters(told) if one.drafter is not None}
    if len(plans) > 1:
        text = f"layer plans differ: {'; '.join(sorted(plans))}"
        advice = "wait for the rollout; with an adaptive plan this is as it should be"
        yield note("plans-differ", "drafters", text, advice)
    for one in verifiers(told):
        if one.status is not None and one.status.drafter_connected:
            yield _worth(one, one.status)


def _worth(one: Told, status: Any) -> Finding:
    drafted = status.draft_tokens - status.guess_tokens
    accepted = status.accepted_tokens - status.accepted_guess_tokens
    asleep = not status.draft_length and status.steps > _DRAFTS
    if drafted < _DRAFTS and not asleep:
        return note(
            "few-drafts",
            one.pod,
            f"{drafted} drafts so far: too few to judge by",
            "let it serve for a while, or run `slipstream check --expect-drafts`",
        )
    rate = accepted / drafted if drafted else 0.0
    ratio = (
        status.plain_step_seconds / status.draft_step_seconds if status.draft_step_seconds else 0
    )
    text = (
        f"{rate:.0%} of the drafter's {drafted} drafts were accepted; a draft takes"
        f" {_ms(status.draft_step_seconds)}, a step {_ms(status.plain_step_seconds)}; with drafts"
        f" it expects {status.draft_worth:.2f} times the speed"
    )
    if 0 < ratio < _LEAST_RATIO:
        return warning(
            "drafter-slow",
            one.pod,
            text,
            "the drafter is hardly faster than the verifier: give it a bigger GPU, fewer bits or"
            " layers (`slipstream tune`), or turn it off (drafter.enabled)",
        )
    if drafted >= _DRAFTS and rate < _LOW_ACCEPTANCE:
        return warning(
            "acceptance-low",
            one.pod,
            text,
            "find a better layer plan on your own prompts (tune.enabled, or `slipstream tune"
            " --prompts`), or more bits",
        )
    if asleep or status.draft_worth < _WORTH:
        return note(
            "drafts-not-worth",
            one.pod,
            f"{text}: at this load it does without",
            "under high load that is right; if it is so at low load, too, turn the drafter off"
            " (drafter.enabled) or give it a faster device",
        )
    return ok("worth", one.pod, text)


def _zone(one: Told) -> str:
    """As it calls it itself, else as its endpoint says."""
    own = one.model.zone if one.model else one.drafter.zone if one.drafter else ""
    return own or one.zone


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
