"""Whether pods run, and if not, what holds them up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from slipstream.cli.k8s.api import Object
from slipstream.cli.k8s.findings import Finding, note, ok, problem, warning
from slipstream.cli.k8s.release import Release, condition, is_ready, moment, name_of, role_of


@dataclass(frozen=True, slots=True)
class Look:
    """What is asked of the API server about a pod in trouble, and only then.

    Attributes:
        last_words: the last lines of a log: pod, container, whether of the run before.
        last_warning: of the events about a pod.
    """

    last_words: Callable[[str, str, bool], str]
    last_warning: Callable[[str], str]


_PULLS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_CONFIGS = {"CreateContainerConfigError", "CreateContainerError"}
# A word of the scheduler's, and what helps then; the first that is there.
_PENDING = (
    (
        "Insufficient nvidia.com",
        (
            "add a node with a free GPU, ask for a MIG slice that there is (ROLE.gpu.resource), or"
            " lower ROLE.gpu.count"
        ),
    ),
    ("Insufficient", "add a node, or lower the requests in ROLE.resources"),
    ("persistentvolumeclaim", "see the finding on the claim: it has no volume"),
    (
        "volume",
        (
            "the volume is in another zone, or the claim has none: see `kubectl describe pvc`;"
            " cache.type shared needs a ReadWriteMany class"
        ),
    ),
    ("taint", "add ROLE.tolerations for the nodes' taints"),
    ("topology spread", "relax ROLE.topologySpread, or add nodes in more zones"),
    (
        "affinity",
        "check ROLE.nodeSelector and ROLE.affinity against `kubectl get nodes --show-labels`",
    ),
    ("selector", "check ROLE.nodeSelector against `kubectl get nodes --show-labels`"),
)
_PENDING_ELSE = "see `kubectl describe pod`, and the cluster's autoscaler"
_JOBS = {"tune": "the layer plan is not found", "model-download": "the model is not downloaded"}
_PATIENCE_SECONDS = 600.0
_RECENT_SECONDS = 3600.0
_MANY_RESTARTS = 3


def check_pods(release: Release, look: Look, now: datetime) -> Iterator[Finding]:
    """Args:
    now: with a time zone.
    """
    for workload in release.workloads():
        yield from _workload(release, workload)
    well = 0
    for pod in release.of("pods"):
        if role_of(pod) in {"tune", "model-download", "test"}:
            continue
        found = list(_pod(release, pod, look, now))
        well += not found
        yield from found
    if well:
        yield ok("pods", release.name, f"{well} pods are ready and were not restarted lately")
    yield from _jobs(release)


def _workload(release: Release, workload: Object) -> Iterator[Finding]:
    """Pods that the API server did not even take."""
    role = role_of(workload)
    wanted, there = release.wanted(role), len(release.of("pods", role))
    refused = condition(workload, "ReplicaFailure")
    if there >= wanted or "pods" in release.denied:
        return
    if refused.get("status") == "True" or not there:
        yield problem(
            "pods-missing",
            name_of(workload),
            f"{there} of {wanted} pods exist. {refused.get('message', '')}".strip(),
            "look at `kubectl describe` of it: a quota, an admission policy or a missing service"
            " account keeps pods from being made",
        )
    else:
        yield note("pods-fewer", name_of(workload), f"{there} of {wanted} pods exist so far")


def _pod(release: Release, pod: Object, look: Look, now: datetime) -> Iterator[Finding]:
    """The first thing that holds it up; nothing where it is well."""
    if pod["metadata"].get("deletionTimestamp"):
        yield note("pod-terminating", name_of(pod), "it is about to end")
        return
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        yield _pending(pod, str(scheduled.get("message", "no reason told")))
        return
    status = pod.get("status") or {}
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            found = _container(release, pod, container, kind, look, now)
            if found is not None:
                yield found
                return
    if not is_ready(pod):
        yield _not_ready(pod, now)


def _pending(pod: Object, reason: str) -> Finding:
    about = name_of(pod)
    advice = next((what for word, what in _PENDING if word in reason), _PENDING_ELSE)
    return problem(
        "pod-pending",
        about,
        f"no node takes it: {reason}",
        advice.replace("ROLE", role_of(pod)),
    )


def _container(
    release: Release,
    pod: Object,
    container: Object,
    kind: str,
    look: Look,
    now: datetime,
) -> Finding | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, message = waiting.get("reason", ""), str(waiting.get("message", ""))
    about = f"{name_of(pod)}/{container['name']}"
    if reason in _PULLS:
        return problem(
            "image-pull",
            about,
            f"image {container.get('image')} cannot be pulled: {message}",
            "check image.registry, repository and tag, and image.pullSecrets for a private"
            " registry",
        )
    mounting = look.last_warning(name_of(pod)) if reason == "ContainerCreating" else ""
    if mounting and "mount" in mounting.lower():
        return _waits_for_config(release, about, mounting)
    if reason in _CONFIGS:
        return _waits_for_config(release, about, message)
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if reason == "CrashLoopBackOff" or (state.get("terminated") or {}).get("exitCode"):
        ended = ended or state.get("terminated") or {}
        words = str(ended.get("message") or "").strip() or look.last_words(
            name_of(pod), container["name"], "terminated" not in state
        )
        return _crashes(about, ended, words)
    if kind == "initContainerStatuses" and "running" in state:
        return _initialising(about, container, _age(state["running"].get("startedAt"), now))
    recent = _age(ended.get("finishedAt"), now) < _RECENT_SECONDS
    if ended and (recent or container.get("restartCount", 0) >= _MANY_RESTARTS):
        return _restarted(about, container, ended)
    return None


def _waits_for_config(release: Release, about: str, message: str) -> Finding:
    """Before its Secrets and ConfigMaps are there, as a drafter before its plan is found."""
    tuning = [job for job in release.of("jobs", "tune") if not _ended(job)]
    if "configmap" in message.lower() and tuning:
        return note(
            "waits-for-tune",
            about,
            f"it waits for the layer plan that {name_of(tuning[0])} makes",
            f"follow it with `kubectl logs -f job/{name_of(tuning[0])} --all-containers`",
        )
    return problem(
        "container-config",
        about,
        f"it cannot be made: {message}",
        "create the Secret or ConfigMap with this key, or correct its name in the values",
    )


def _crashes(about: str, ended: Object, words: str) -> Finding:
    code, reason = ended.get("exitCode", "?"), ended.get("reason", "")
    if reason == "OOMKilled":
        return problem(
            "out-of-memory",
            about,
            "it is killed for want of memory",
            "raise resources.limits.memory of its role: weights, KV cache and 1 GiB beside them"
            " must fit",
        )
    last = words.splitlines()[-1] if words else "it left no word"
    meaning = "a setting cannot be used" if code == 2 else "see its whole log"
    return problem(
        "crash-loop",
        about,
        f"it ends again and again, with exit code {code}: {last}",
        f"{meaning}: `kubectl logs {about.partition('/')[0]} -c {about.partition('/')[2]}"
        " --previous`",
    )


def _initialising(about: str, container: Object, seconds: float) -> Finding:
    text = f"{container['name']} has been running for {seconds / 60:.0f} min, and the pod waits"
    if seconds < _PATIENCE_SECONDS:
        return note("init-running", about, text, "large models take their time to download")
    return warning(
        "init-stuck",
        about,
        text,
        "see its log; check the way to the hub (proxy, NetworkPolicy egress to 443), the token in"
        " model.hfToken for a gated model, and free space in the model volume",
    )


def _restarted(about: str, container: Object, ended: Object) -> Finding:
    times = container.get("restartCount", 0)
    why = ended.get("reason") or f"exit code {ended.get('exitCode')}"
    advice = "see `kubectl logs --previous`; for OOMKilled raise the memory limit, for Error with a"
    return warning(
        "restarts",
        about,
        f"it was restarted {times} times, last for {why}",
        f"{advice} failed liveness probe see whether the node is overloaded",
    )


def _not_ready(pod: Object, now: datetime) -> Finding:
    status = pod.get("status") or {}
    seconds = _age(status.get("startTime"), now)
    told = condition(pod, "ContainersReady").get("message") or condition(pod, "Ready").get(
        "message"
    )
    text = f"it runs for {seconds / 60:.0f} min and is not ready: {told or 'no reason told'}"
    if seconds < _PATIENCE_SECONDS:
        return note("starting", name_of(pod), text, "loading a model takes minutes: wait")
    return warning(
        "not-ready",
        name_of(pod),
        text,
        "see its log: a model that does not load, a row of shards that is not complete, or"
        " (gateway) no verifier that serves",
    )


def _jobs(release: Release) -> Iterator[Finding]:
    for role, what in _JOBS.items():
        for job in release.of("jobs", role):
            failed = condition(job, "Failed")
            if failed.get("status") == "True":
                yield problem(
                    "job-failed",
                    name_of(job),
                    f"{what}: {failed.get('message') or failed.get('reason')}",
                    f"see `kubectl logs job/{name_of(job)} --all-containers`; then delete the Job"
                    " and `helm upgrade` again",
                )
            elif not _ended(job):
                yield note("job-running", name_of(job), f"{what} yet", "wait for it")


def _ended(job: Object) -> bool:
    return any(condition(job, kind).get("status") == "True" for kind in ("Complete", "Failed"))


def _age(stamp: str | None, now: datetime) -> float:
    """Seconds since a time of the API's; infinite where it is not told."""
    if not stamp:
        return float("inf")
    return (now - moment(stamp)).total_seconds()
