"""`slipstream k8s doctor`: examines a release and says what to do."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli.k8s.api import Cluster
from slipstream.cli.k8s.asking import Reach, ask_all
from slipstream.cli.k8s.checks.pods import Look, check_pods
from slipstream.cli.k8s.checks.references import check_references, check_volumes
from slipstream.cli.k8s.checks.services import (
    check_answers,
    check_devices,
    check_gateways,
    check_models,
)
from slipstream.cli.k8s.checks.speed import check_latency, check_pairing, check_worth
from slipstream.cli.k8s.checks.surroundings import (
    check_endpoints,
    check_rights,
    check_surroundings,
)
from slipstream.cli.k8s.findings import Finding, as_json, as_text, healthy, note, worst_first
from slipstream.cli.k8s.identity import Given, identity_for
from slipstream.cli.k8s.release import Release, find
from slipstream.cli.k8s.told import Told
from slipstream.core.errors import ClusterForbidden, DeadlineExceeded
from slipstream.wire.tls import among_peers


class ReachOption(StrEnum):
    auto = "auto"
    direct = "direct"
    port_forward = "port-forward"


def doctor(
    namespace: Annotated[
        str | None, typer.Option(help="Default: the context's; then any that has a release.")
    ] = None,
    release: Annotated[
        str | None, typer.Option(help="Name of the Helm release; needed where there are several.")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Default: in a pod its account, else as kubectl.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Of the kubeconfig.")] = None,
    reach: Annotated[
        ReachOption,
        typer.Option(help="Way to the pods; auto: direct in a pod, else through the API server."),
    ] = ReachOption.auto,
    tls_cert: Annotated[
        Path | None, typer.Option(help="With TLS between services; default: the release's Secret.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="The CA of the services.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds in all.")] = 120.0,
) -> None:
    """Examine a release: rights, pods, references, endpoints, models, GPUs, store, latency, drafts.

    Nothing is changed. Exit code 0: no problem; 1: there are problems, or it could not be examined;
    2: an option cannot be used, or does not say which release is meant.
    """
    with contextlib.closing(Cluster(kubeconfig, context)) as cluster:
        forward = reach is ReachOption.port_forward or (
            reach is ReachOption.auto and not cluster.inside
        )
        given = Given(tls_cert, tls_key, tls_ca)

        def work() -> tuple[Release, list[Finding]]:
            there = find(cluster, namespace, release)
            return there, examine(cluster, there, given, forward=forward)

        there, found = _within(timeout, work)
    found = worst_first(found)
    if json:
        typer.echo(as_json(there.namespace, there.name, found))
    else:
        typer.echo(f"release {there.name} in namespace {there.namespace}")
        typer.echo(as_text(found))
    if not healthy(found):
        raise typer.Exit(1)


def examine(cluster: Cluster, release: Release, given: Given, *, forward: bool) -> list[Finding]:
    """All findings. Raises SlipstreamError where the API server does not answer."""
    now = datetime.now(UTC)
    found: list[Finding] = []
    for kind, why in release.denied.items():
        advice = f"run the doctor as somebody who may list {kind} in {release.namespace}"
        found.append(note("unseen", kind, f"they are not looked at: {why}", advice))
    found += look_at_objects(cluster, release, now)
    with identity_for(release, cluster, given, found) as (tls, can_ask):
        if can_ask:
            with among_peers(tls):
                way = Reach(cluster, release.namespace, forward=forward)
                told = asyncio.run(ask_all(release, way, now))
            found += look_at_services(release, told)
    return found


def look_at_objects(cluster: Cluster, release: Release, now: datetime) -> Iterator[Finding]:
    """What the API server alone tells."""
    where = release.namespace

    def may(account: str, verb: str) -> bool | None:
        return _may(cluster, where, account, verb)

    look = Look(
        lambda pod, name, before: cluster.last_words(where, pod, name, previous=before),
        lambda pod: cluster.last_warning(where, pod),
    )
    yield from check_pods(release, look, now)
    yield from check_references(release, lambda kind, name: cluster.get(kind, where, name))
    yield from check_endpoints(release)
    yield from check_volumes(release, lambda kind, name: cluster.get(kind, where, name))
    yield from check_rights(release, may)
    yield from check_surroundings(release)


def look_at_services(release: Release, told: list[Told]) -> Iterator[Finding]:
    """What the pods' own words tell."""
    yield from check_answers(told, release)
    yield from check_models(told)
    yield from check_devices(told)
    yield from check_gateways(told, release)
    yield from check_latency(told)
    yield from check_pairing(told, release)
    yield from check_worth(told, release)


def _may(cluster: Cluster, namespace: str, account: str, verb: str) -> bool | None:
    """Whether a service account may do that with EndpointSlices; None: we may not know.

    In a pod whose account it is, the account may ask about itself.
    """
    what = {
        "namespace": namespace,
        "verb": verb,
        "group": "discovery.k8s.io",
        "resource": "endpointslices",
    }
    user = f"system:serviceaccount:{namespace}:{account}"
    groups = (
        "system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated",
    )  # fmt: skip
    try:
        return cluster.may(what, user, groups)
    except ClusterForbidden:
        if cluster.inside and cluster.account == account and cluster.namespace == namespace:
            return cluster.may(what)
        return None


def _within(
    seconds: float, work: Callable[[], tuple[Release, list[Finding]]]
) -> tuple[Release, list[Finding]]:
    """Every call has its deadline; this is the one for all of them together.

    Raises:
        DeadlineExceeded: it is over. What still runs ends with the process.
        SlipstreamError: what `work` raises.
    """
    results: list[tuple[Release, list[Finding]]] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as failure:  # noqa: BLE001 raised again below, on the caller's thread
            failures.append(failure)

    thread = threading.Thread(target=run, name="doctor", daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise DeadlineExceeded(
            f"the release could not be examined within {seconds:g} s: is the API server slow? Give"
            " more with --timeout"
        )
    return results[0]
