"""What a release's pods refer to: Secrets, ConfigMaps, volume claims."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from slipstream.cli.k8s.api import Object
from slipstream.cli.k8s.findings import Finding, note, ok, problem
from slipstream.cli.k8s.release import Release, condition, name_of
from slipstream.core.errors import ClusterForbidden, ClusterNotFound

# Gets one object: kind, name. Raises ClusterNotFound and ClusterForbidden.
Get = Callable[[str, str], Object]


@dataclass(frozen=True, slots=True)
class Reference:
    """A Secret or ConfigMap that a workload names; an empty key: any."""

    kind: str
    name: str
    key: str
    optional: bool


def references(pod_spec: Object) -> set[Reference]:
    """Secrets and ConfigMaps with the keys that a pod cannot start without."""
    found: set[Reference] = set()
    for container in (*(pod_spec.get("initContainers") or ()), *pod_spec["containers"]):
        for env in container.get("env") or ():
            found |= _named(env.get("valueFrom") or {}, "secretKeyRef", "configMapKeyRef")
        for source in container.get("envFrom") or ():
            found |= _named(source, "secretRef", "configMapRef")
    for volume in pod_spec.get("volumes") or ():
        for part in (volume, *((volume.get("projected") or {}).get("sources") or ())):
            found |= _named(part, "secret", "configMap")
    for ref in pod_spec.get("imagePullSecrets") or ():
        found.add(Reference("secrets", ref["name"], "", optional=False))
    return found


def _named(source: Object, secret: str, config_map: str) -> set[Reference]:
    """What a source names, under these fields."""
    found = set()
    for field, kind in ((secret, "secrets"), (config_map, "configmaps")):
        if ref := source.get(field):
            name, optional = ref.get("secretName") or ref.get("name"), bool(ref.get("optional"))
            keys = [item["key"] for item in ref.get("items") or ()] or [ref.get("key", "")]
            found |= {Reference(kind, name, key, optional) for key in keys}
    return found


def check_references(release: Release, get: Get) -> Iterator[Finding]:
    """Secrets and ConfigMaps exist, with their keys. Only names of keys are looked at."""
    wanted: dict[tuple[str, str], set[str]] = defaultdict(set)
    for workload in release.workloads():
        for ref in references(workload["spec"]["template"]["spec"]):
            if not ref.optional:
                wanted[ref.kind, ref.name].add(ref.key)
    well, unseen = 0, []
    for (kind, name), keys in sorted(wanted.items()):
        about = f"{kind.removesuffix('s')} {name}"
        try:
            there = get(kind, name)
        except ClusterForbidden:
            unseen.append(about)
            continue
        except ClusterNotFound:
            yield _missing(release, kind, about)
            continue
        data = {*(there.get("data") or {}), *(there.get("binaryData") or {})}
        lacking = sorted(keys - data - {""})
        well += not lacking
        if lacking:
            yield problem(
                "key-missing",
                about,
                f"it has no key {', '.join(lacking)}",
                "add it, or name the key that there is in the values",
            )
    if well:
        yield ok("references", release.name, f"{well} Secrets and ConfigMaps are there, with keys")
    if unseen:
        yield note(
            "references-unseen",
            release.name,
            f"whether these are there cannot be seen: {', '.join(unseen)}",
            "run the doctor as somebody who may get them; only the names of keys are looked at",
        )


def _missing(release: Release, kind: str, about: str) -> Finding:
    tuning = release.of("jobs", "tune")
    if kind == "configmaps" and tuning and condition(tuning[0], "Failed").get("status") != "True":
        text = f"it is not there yet: {name_of(tuning[0])} makes it"
        return note("waits-for-tune", about, text, "wait for the Job; drafters start then")
    return problem(
        "reference-missing",
        about,
        "pods refer to it, and it does not exist",
        "create it in the release's namespace, or correct its name in the values",
    )


def check_volumes(release: Release, get: Get) -> Iterator[Finding]:
    """Claims of the pods are bound."""
    names = {
        claim["claimName"]
        for pod in release.of("pods")
        for volume in pod["spec"].get("volumes") or ()
        if (claim := volume.get("persistentVolumeClaim"))
    }
    bound = 0
    for name in sorted(names):
        about = f"persistentvolumeclaim {name}"
        try:
            phase = (get("persistentvolumeclaims", name).get("status") or {}).get("phase")
        except ClusterForbidden:
            continue
        except ClusterNotFound:
            phase = "not there"
        bound += phase == "Bound"
        if phase != "Bound":
            yield problem(
                "pvc-unbound",
                about,
                f"it is {phase}",
                "see `kubectl describe pvc`: name a StorageClass that there is, with the access"
                " mode that is asked for (cache.type shared needs ReadWriteMany)",
            )
    if bound:
        yield ok("pvc", release.name, f"{bound} volume claims are bound")
