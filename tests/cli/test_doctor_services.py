"""What the doctor makes of the pods' own words: each finding from one flaw in what they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slipstream.cli.k8s.doctor import look_at_services
from slipstream.cli.k8s.findings import Finding, Level, as_text, healthy, worst_first
from slipstream.cli.k8s.release import Release
from slipstream.cli.k8s.told import Told
from tests.cli.releases import Objects, drafter, model, ready, status, told

Said = dict[str, Told]


def release(*, drafters: int = 1) -> Release:
    found = Release("ns", "chat")
    objects = Objects()
    for (kind, _), one in objects.all.items():
        found.objects[f"{kind.lower()}s"].append(one)
    objects.workload("drafter")["spec"]["replicas"] = drafters
    return found


def findings(said: Said, there: Release | None = None) -> list[Finding]:
    return list(look_at_services(there or release(), list(said.values())))


def test_healthy_release() -> None:
    """Nothing but good words, with the figures that they rest on."""
    found = findings(told())
    assert [one for one in found if one.level is not Level.ok] == []
    texts = {one.check: one.text for one in found}
    assert texts["answers"] == "all 4 pods that serve answer"
    assert (
        "smol ffffffffffff everywhere: bfloat16, precision native, strict, 4096" in texts["model"]
    )
    assert texts["devices"] == "2 verifier cpu, 1 drafter cpu"
    assert texts["store"] == "the session store answers within 1.0 ms"
    assert "6.0 ms from a commit" in texts["round-trip"]
    assert "2.0 ms are on the way; a step takes 20.0 ms: a round fits" in texts["round-trip"]
    # 4000 - 600 accepted of 5000 - 1000.
    assert "85% of the drafter's 4000 drafts were accepted" in texts["worth"]
    assert texts["pairing"] == "2 verifiers have a drafter"


def verifier(**other: object) -> Callable[[Said], None]:
    def spoil(said: Said) -> None:
        said["v0"].model = model(**other)

    return spoil


def counts(**other: object) -> Callable[[Said], None]:
    def spoil(said: Said) -> None:
        said["v0"].status = status(**other)

    return spoil


def drafts(**other: object) -> Callable[[Said], None]:
    def spoil(said: Said) -> None:
        said["d"].drafter = drafter(**other)

    return spoil


def seen(**other: object) -> Callable[[Said], None]:
    def spoil(said: Said) -> None:
        said["g"].ready = {**ready("10.0.1.0", "10.0.1.1"), **other}

    return spoil


def store(**other: object) -> Callable[[Said], None]:
    return seen(store={"state": "ok", "detail": "", **other})


def gpu(name: str) -> Callable[[Said], None]:
    def spoil(said: Said) -> None:
        said[name].gpus = {"nvidia.com/gpu": "1"}

    return spoil


def silent(said: Said) -> None:
    said["v1"].failure, said["v1"].model, said["v1"].status = "connection refused", None, None


def far(said: Said) -> None:
    assert said["g"].ready is not None
    said["g"].ready["verifiers"][1]["round_trip_seconds"] = 0.08


def apart(said: Said) -> None:
    for name in ("v0", "v1"):
        said[name].model = model(zone="b")


def apart_with_one_near(said: Said) -> None:
    apart(said)
    said["e"] = Told("drafter-1", "drafter", "10.0.2.1", drafter=drafter(zone="b"))


def other_plan(said: Said) -> None:
    said["e"] = Told("drafter-1", "drafter", "10.0.2.1", drafter=drafter(layer_plan="int4"))


def lost(said: Said) -> None:
    assert said["g"].ready is not None
    said["g"].ready["verifiers"][0] |= {"state": "lost", "detail": "refused"}


def unknown(said: Said) -> None:
    said["g"].ready = ready("10.0.1.0")


FLAWS: list[tuple[str, str, str, str, Callable[[Said], None]]] = [
    ("no-answer", "warning", "cannot be asked: connection refused", "NetworkPolicy", silent),
    ("model-differs", "problem", "gets no requests", "restart it", verifier(fingerprint="e" * 32)),
    ("settings-differ", "warning", "dtype differs: bfloat16, float32", "verifier.dtype",
     verifier(dtype="float32")),
    ("settings-differ", "warning", "precision differs", "verifier.precision",
     verifier(precision="int8")),
    ("settings-differ", "warning", "exactness differs", "verifier.exactness",
     verifier(exactness="fast")),
    ("context-differs", "note", "2048, 4096", "memory", verifier(context_length=2048)),
    ("drafter-model", "problem", "another model than the verifiers", "restart it",
     drafts(model_fingerprint="e" * 32)),
    ("gpu-unused", "problem", "asks for nvidia.com/gpu 1 and computes on the CPU",
     "image.variant cuda", gpu("v0")),
    ("gpu-unused", "problem", "asks for nvidia.com/gpu 1", "runtimeClassName", gpu("d")),
    ("gateway-not-ready", "problem", "cannot be served: a drafter", "log",
     seen(ready=False, missing=["a drafter"])),
    ("discovery-degraded", "warning", "k8s:///v:1 through the API: no right", "rbac.create",
     seen(discovery=[{"entry": "k8s:///v:1", "state": "degraded", "detail": "no right"}])),
    ("verifier-lost", "warning", "10.0.1.0:50051 is lost for it: refused", "NetworkPolicy", lost),
    ("verifier-unknown", "warning", "10.0.1.1", "discovery", unknown),
    ("store-down", "problem", "does not work: refused", "redis",
     store(state="degraded", detail="refused")),
    ("store-off", "note", "no sessions", "", store(state="off")),
    ("store-slow", "warning", "took 90 ms", "zone", store(answer_seconds=0.09)),
    ("gateway-far", "warning", "80.0 ms to verifier 10.0.1.1:50051", "verifiers' zone", far),
    ("round-trip-long", "warning", "come too late", "drafter.affinity",
     counts(round_trip_seconds=0.05)),
    ("draft-step-long", "warning", "drafting one token takes too long", "layer plan",
     counts(round_trip_seconds=0.05, draft_step_seconds=0.04)),
    ("no-drafter", "warning", "it has no drafter: refused", "NetworkPolicy",
     counts(drafter_connected=False, drafter_detail="refused")),
    ("zones-apart", "warning", "zone b, its drafter in a", "place a drafter in zone b", apart),
    ("zones-apart", "warning", "zone b, its drafter in a", "add drafter replicas",
     apart_with_one_near),
    ("drafter-absent", "warning", "for 7200 s, 50% of its time", "drafter.replicas",
     counts(without_drafter_seconds=7200.0)),
    ("plans-differ", "note", "int4; int8", "adaptive", other_plan),
    ("few-drafts", "note", "100 drafts so far", "serve for a while",
     counts(draft_tokens=1100)),
    ("drafter-slow", "warning", "a draft takes 19.0 ms, a step 20.0 ms", "bigger GPU",
     counts(draft_step_seconds=0.019, round_trip_seconds=0.0195)),
    ("acceptance-low", "warning", "35% of the drafter's", "slipstream tune",
     counts(accepted_tokens=2000)),
    ("drafts-not-worth", "note", "it does without", "drafter.enabled",
     counts(draft_length=0, draft_worth=1.0)),
]  # fmt: skip
# What the same flaw shows a second time.
_BESIDE = {"draft-step-long": {"drafter-slow"}, "zones-apart": set()}


@pytest.mark.parametrize(
    ("check", "level", "text", "do", "flaw"), FLAWS, ids=[f"{f[0]}-{f[2][:12]}" for f in FLAWS]
)
def test_every_flaw_is_found(
    check: str, level: str, text: str, do: str, flaw: Callable[[Said], None]
) -> None:
    """One flaw gives its finding, of its level, with what to do about it, and no other."""
    said = told()
    flaw(said)
    found = findings(said)
    first = next(one for one in found if one.check == check and text in one.text)
    assert first.level == level
    assert do in first.do
    assert bool(first.do) == bool(do)
    bad = {one.check for one in found if one.level in {Level.problem, Level.warning}}
    assert bad - {check} <= _BESIDE.get(check, set())


def test_release_without_drafters() -> None:
    """No drafters at all are no flaw: verifiers that have none then are as they should be."""
    said = told()
    del said["d"]
    for name in ("v0", "v1"):
        said[name].status = status(drafter_connected=False, draft_worth=0.0)
    [only] = [one for one in findings(said, release(drafters=0)) if one.level is not Level.ok]
    assert (only.check, only.level) == ("no-drafters", Level.note)


def test_few_rounds_say_nothing() -> None:
    """A round trip of a few rounds is not judged."""
    said = told()
    said["v0"].status = status(round_trips=3, round_trip_seconds=1.0)
    checks = [one.check for one in findings(said)]
    assert checks.count("round-trip") == 1
    assert "round-trip-long" not in checks


def test_told_worst_first() -> None:
    """Problems come first, each with what to do; the last line has the sum."""
    said = told()
    verifier(context_length=2048)(said)
    gpu("v0")(said)
    found = worst_first(findings(said))
    lines = as_text(found).splitlines()
    assert lines[0].startswith("problem  verifier-0: it asks for nvidia.com/gpu 1")
    assert lines[1].startswith("         do: use the CUDA image")
    assert lines[2].startswith("note     verifiers: context lengths")
    assert lines[-1] == f"1 problem, 0 warnings, 1 note, {len(found) - 2} ok"
    assert not healthy(found)
    assert healthy(found[1:])
