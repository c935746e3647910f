"""What stands around a release's pods: endpoints, rights, network policies, scalers, images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from slipstream.cli.k8s.api import Object
from slipstream.cli.k8s.findings import Finding, note, ok, problem, warning
from slipstream.cli.k8s.release import ROLES, SERVICES, Release, condition, name_of, role_of


def check_endpoints(release: Release) -> Iterator[Finding]:
    """Every role has ready endpoints, and their zones are known."""
    if "endpointslices" in release.denied:
        return
    for role in ROLES:
        if not release.workloads(role):
            continue
        endpoints = [
            each
            for one in release.of("endpointslices", role)
            for each in one.get("endpoints") or ()
        ]
        ready = [e for e in endpoints if (e.get("conditions") or {}).get("ready") is not False]
        about, wanted = f"endpoints of {role}", release.wanted(role)
        if not ready and wanted:
            degraded = warning if role in {"drafter", "redis"} else problem
            without = {
                "drafter": "answers come without its drafts",
                "redis": "sessions are not kept",
            }
            yield degraded(
                "no-endpoints",
                about,
                f"none is ready; {without.get(role, 'nothing is served')}",
                f"see the findings on the pods of {role}; without any, compare the Service's"
                " selector with the pods' labels",
            )
        elif ready:
            yield ok("endpoints", about, f"{len(ready)} of {wanted} are ready")
        unknown = [e for e in ready if not e.get("zone")]
        if unknown and role in SERVICES:
            yield note(
                "zones-unknown",
                about,
                f"the zone of {len(unknown)} is not known, so pairing by zone takes no account of"
                " them",
                "label the nodes with topology.kubernetes.io/zone where they are in several zones",
            )


def check_surroundings(release: Release) -> Iterator[Finding]:
    """Network policies, scalers, images."""
    if "networkpolicies" not in release.denied:
        count = len(release.of("networkpolicies"))
        if count:
            text = f"there are {count}; whether the cluster's network enforces them is not visible"
            yield ok("network-policy", release.name, text)
        else:
            yield note(
                "no-network-policy",
                release.name,
                "there are no NetworkPolicies: any pod of the cluster reaches verifiers and"
                " drafters",
                "set networkPolicy.enabled, or tls.enabled, or keep others out by other means",
            )
    for scaler in release.of("horizontalpodautoscalers"):
        yield from _scaler(scaler)
    yield from _images(release)


def _scaler(scaler: Object) -> Iterator[Finding]:
    active, limited = condition(scaler, "ScalingActive"), condition(scaler, "ScalingLimited")
    if active.get("status") == "False" and active.get("reason") != "ScalingDisabled":
        yield warning(
            "hpa-metrics",
            name_of(scaler),
            f"it does not scale: {active.get('message', '')}",
            "install metrics-server for cpu and memory, and prometheus-adapter (or use KEDA) for"
            " slipstream's own metrics",
        )
    elif limited.get("status") == "True" and limited.get("reason") == "TooManyReplicas":
        yield note("hpa-at-most", name_of(scaler), "it is at its maximum", "raise maxReplicas")
    elif active:
        yield ok("hpa", name_of(scaler), "its metrics are there")


def _images(release: Release) -> Iterator[Finding]:
    """The same build within a role, the same version over all."""
    versions: dict[str, str] = {}
    for role in SERVICES:
        pods = [p for p in release.of("pods", role) if not p["metadata"].get("deletionTimestamp")]
        images = {str(pod["spec"]["containers"][0]["image"]) for pod in pods}
        ids = {
            str(status.get("imageID"))
            for pod in pods
            for status in ((pod.get("status") or {}).get("containerStatuses") or ())[:1]
            if status.get("imageID")
        }
        if len(images) > 1:
            yield note(
                "rollout",
                role,
                f"its pods run {len(images)} images: {', '.join(sorted(images))}",
                "wait for the rollout to end",
            )
        elif len(ids) > 1:
            yield warning(
                "image-moved",
                role,
                f"its pods run {len(ids)} builds of one tag, {images.pop()}",
                "use tags that do not move, or digests, and restart the pods",
            )
        elif images and (version := _version(images.pop())):
            versions[role] = version
    if len({*versions.values()}) > 1:
        told = ", ".join(f"{role} {version}" for role, version in versions.items())
        yield warning(
            "versions-differ",
            release.name,
            f"the roles run different versions: {told}",
            "leave image.tag of the roles empty, so that all follow the chart's version",
        )
    elif versions:
        yield ok("images", release.name, f"all run version {versions.popitem()[1]}")


def _version(image: str) -> str:
    """The tag without its variant; empty for a digest alone, as each role has its own."""
    name, _, digest = image.rpartition("/")[2].partition("@")
    tag = name.partition(":")[2]
    return re.sub(r"-(cpu|cuda)[0-9.]*$", "", tag) or ("" if digest else "latest")


def check_rights(release: Release, may: Callable[[str, str], bool | None]) -> Iterator[Finding]:
    """The service accounts of pods that watch EndpointSlices may do so.

    Args:
        may: takes a service account and a verb; None: that cannot be found out.
    """
    unknown, well = set(), set()
    for workload in release.workloads():
        spec = workload["spec"]["template"]["spec"]
        role = role_of(workload)
        args = spec["containers"][0].get("args") or ()
        if role not in SERVICES or not any("k8s://" in str(arg) for arg in args):
            continue
        account = spec.get("serviceAccountName") or "default"
        about = f"{role}'s service account {account}"
        projected = any("projected" in volume for volume in spec.get("volumes") or ())
        if spec.get("automountServiceAccountToken") is False and not projected:
            yield problem(
                "no-token",
                about,
                "its token is not mounted, and the pods look for peers through the API",
                "set automountServiceAccountToken of the role, or discovery.mode dns",
            )
        answers = {verb: may(account, verb) for verb in ("list", "watch")}
        refused = [verb for verb, answer in answers.items() if answer is False]
        if refused:
            yield problem(
                "no-right",
                about,
                f"it may not {' or '.join(refused)} endpointslices: peers are found by DNS alone,"
                " without zones, and later",
                f"a Role in {release.namespace} with apiGroups [discovery.k8s.io], resources"
                " [endpointslices], verbs [get, list, watch] and its RoleBinding: set"
                " rbac.create, or discovery.mode dns",
            )
        elif None in answers.values():
            unknown.add(about)
        else:
            well.add(about)
    if well:
        yield ok("rights", release.name, f"{len(well)} service accounts may watch EndpointSlices")
    if unknown:
        yield note(
            "rights-unseen",
            release.name,
            f"what these may do cannot be seen: {', '.join(sorted(unknown))}",
            "run the doctor as somebody who may create subjectaccessreviews",
        )
