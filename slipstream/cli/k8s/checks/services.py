"""Whether what the pods say of themselves fits together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from slipstream.cli.k8s.findings import Finding, note, ok, problem, warning
from slipstream.cli.k8s.release import Release
from slipstream.cli.k8s.told import Told, drafters, gateways, verifiers

_SLOW_STORE_SECONDS = 0.05


def check_answers(told: list[Told], release: Release) -> Iterator[Finding]:
    """Pods that could not be asked."""
    for one in told:
        if not one.failure:
            continue
        advice = (
            "if it serves, it is the way there: a NetworkPolicy, TLS (the certificate of"
            " --tls-cert, or the release's Secret), or a right; try --reach port-forward"
        )
        yield warning("no-answer", one.pod, f"it cannot be asked: {one.failure}", advice)
    if told and not any(one.failure for one in told):
        yield ok("answers", release.name, f"all {len(told)} pods that serve answer")


def check_models(told: list[Told]) -> Iterator[Finding]:
    """One model everywhere; what differs otherwise."""
    held = verifiers(told)
    models = [(one, one.model) for one in held if one.model is not None]
    if not models:
        return
    prints = Counter(model.fingerprint for _, model in models)
    # Where verifiers are divided, drafters say which model is meant.
    drafted = Counter(one.drafter.model_fingerprint for one in drafters(told) if one.drafter)
    most = max(prints, key=lambda each: (prints[each], drafted[each]))
    for one, model in models:
        if model.fingerprint != most:
            yield problem(
                "model-differs",
                one.pod,
                f"it serves model {model.fingerprint[:12]}, most verifiers {most[:12]}: it gets no"
                " requests",
                "restart it so that it loads the model of the values; clear its cache volume if"
                " that holds an older one",
            )
    for name in ("dtype", "precision", "exactness"):
        values = sorted({getattr(model, name) for _, model in models})
        if len(values) > 1:
            yield warning(
                "settings-differ",
                "verifiers",
                f"{name} differs: {', '.join(values)}. Only those of one kind serve a request, and"
                " none of another one goes on with it",
                f"set verifier.{name} instead of auto, and GPUs of one kind",
            )
    lengths = sorted({model.context_length for _, model in models})
    if len(lengths) > 1:
        yield note(
            "context-differs",
            "verifiers",
            f"context lengths are {', '.join(map(str, lengths))}: the shortest holds",
            "give all the same memory for keys and values",
        )
    wrong = [one for one in drafters(told) if one.drafter and one.drafter.model_fingerprint != most]
    for one in wrong:
        yield problem(
            "drafter-model",
            one.pod,
            "it holds another model than the verifiers, who refuse it",
            "restart it so that it loads the model of the values; clear its cache volume",
        )
    if len(prints) == 1 and not wrong:
        model = models[0][1]
        yield ok(
            "model",
            "model",
            f"{model.model_id} {most[:12]} everywhere: {model.dtype}, precision {model.precision},"
            f" {model.exactness}, {lengths[0]} tokens of context",
        )


def check_devices(told: list[Told]) -> Iterator[Finding]:
    """A pod that asks for a GPU computes on one."""
    on: Counter[str] = Counter()
    for one in told:
        device = ""
        if one.model is not None:
            device = one.model.device
        elif one.drafter is not None:
            device = one.drafter.device
        if not device:
            continue
        on[f"{one.role} {device}"] += 1
        asked = ", ".join(f"{key} {count}" for key, count in one.gpus.items() if count != "0")
        if asked and device == "cpu":
            yield problem(
                "gpu-unused",
                one.pod,
                f"it asks for {asked} and computes on the CPU",
                "use the CUDA image (image.variant cuda), and see that the node's driver and"
                " runtime class (runtimeClassName nvidia) give the GPU to the container",
            )
    if on:
        yield ok("devices", "devices", ", ".join(f"{count} {name}" for name, count in on.items()))


def check_gateways(told: list[Told], release: Release) -> Iterator[Finding]:
    """What the gateways see: verifiers, and the session store."""
    serving = {one.address for one in told if one.role == "verifier" and one.model is not None}
    for one in gateways(told):
        ready = one.ready or {}
        if not ready.get("ready"):
            missing = ", ".join(ready.get("missing") or ["it does not say what"])
            yield problem(
                "gateway-not-ready",
                one.pod,
                f"requests cannot be served: {missing}",
                "see the findings on verifiers; then the gateway's log, and its right to watch"
                " EndpointSlices",
            )
        yield from _discovery(one, ready)
        yield from _seen(one, ready, serving)
        yield from _store(one, ready.get("store") or {}, release)


def _discovery(one: Told, ready: dict[str, Any]) -> Iterator[Finding]:
    """How it follows the verifiers' Service."""
    for each in ready.get("discovery") or ():
        if each.get("state") == "degraded":
            yield warning(
                "discovery-degraded",
                one.pod,
                f"it does not follow {each.get('entry')} through the API: {each.get('detail')}",
                "grant the right that it names (rbac.create), and let it reach the API server"
                " (networkPolicy.apiServer); until then it asks DNS",
            )


def _seen(one: Told, ready: dict[str, Any], serving: set[str]) -> Iterator[Finding]:
    listed = ready.get("verifiers") or ()
    known = {str(each["address"]).rpartition(":")[0].strip("[]") for each in listed}
    for each in listed:
        if each.get("state") in {"lost", "other model"}:
            yield warning(
                "verifier-lost",
                one.pod,
                f"verifier {each['address']} is {each['state']} for it: {each.get('detail', '')}",
                "see that verifier's log; where its pod is ready, a NetworkPolicy or TLS stands"
                " between the two",
            )
    if unknown := sorted(serving - known):
        yield warning(
            "verifier-unknown",
            one.pod,
            f"it does not know of verifiers that serve: {', '.join(unknown)}",
            "see its log for discovery: a right is missing, or DNS is stale (then it takes half a"
            " minute)",
        )


def _store(one: Told, store: dict[str, Any], release: Release) -> Iterator[Finding]:
    state, seconds = store.get("state"), store.get("answer_seconds")
    if state == "degraded":
        yield problem(
            "store-down",
            one.pod,
            f"the session store does not work: {store.get('detail', '')}",
            "see the pods of redis, or the external one's address and password; sessions and"
            " resumption stand still meanwhile",
        )
    elif state == "off":
        yield note("store-off", one.pod, "no session store: no sessions, no resumption")
    elif isinstance(seconds, float) and seconds > _SLOW_STORE_SECONDS:
        yield warning(
            "store-slow",
            one.pod,
            f"the session store's last answer took {seconds * 1000:.0f} ms",
            "put Redis into the gateways' zone; see whether it swaps or saves to a slow disk",
        )
    elif isinstance(seconds, float):
        yield ok("store", one.pod, f"the session store answers within {seconds * 1000:.1f} ms")
    elif release.wanted("gateway") > 1 and not release.workloads("redis"):
        yield ok("store", one.pod, "the session store works")
