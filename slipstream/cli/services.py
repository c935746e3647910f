"""The processes of one machine: their command lines and who computes on which core."""

from __future__ import annotations

import itertools
import os
import ssl
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx

from slipstream.cli.addresses import reachable
from slipstream.cli.supervisor import Service
from slipstream.core.errors import ConfigurationError
from slipstream.wire.transport import is_serving

# What `up` makes sure of whether it is asked for or not: nothing without keys is open to others.
_CHECKED = ("listen", "metrics", "http", "grpc", "api-keys")
# Trusts nobody. Reading the certificates of the machine would take longer than all else of a
# question that is asked in the clear, several times a second while a model loads.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
# Options of a service's command line; None means that the service's own default holds.
Options = dict[str, object | None]
Ask = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What `slipstream up` was asked for, with addresses and model folder settled.

    Attributes:
        model: folder of the model.
        name: the model's name for clients.
        http, grpc, verifier: addresses as host:port.
        drafter: the drafter's address; None to serve without one.
        shards: addresses of the drafter's shards behind the first, which has the one above.
        metrics: where the verifier, the drafter and its shards answer Prometheus; empty: nowhere.
        verifier_cpus, drafter_cpus: cores to compute on, empty to leave that to the system.
        common: options of both model services, by name without dashes.
        verifier_options, drafter_options, gateway_options: options of one service.
        more: words that are put behind the options of the verifier, the drafter and its shards, and
            the gateway, by these names.
    """

    model: Path
    name: str
    http: str
    grpc: str
    verifier: str
    drafter: str | None
    verifier_cpus: tuple[int, ...]
    drafter_cpus: tuple[int, ...]
    common: Options
    verifier_options: Options
    drafter_options: Options
    gateway_options: Options
    shards: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def split_cores(
    cores: Sequence[int], drafter: bool, *, apart: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cores of the verifier and of the drafter.

    Without a drafter the verifier has all. With a single core both are left unpinned (empty).

    Args:
        apart: the first half and the second; else both have all, and the verifier decides where
            each computes.
    """
    if not drafter:
        return tuple(cores), ()
    if not apart and len(cores) > 1:
        return tuple(cores), tuple(cores)
    if len(cores) < 2:
        return (), ()
    half = (len(cores) + 1) // 2
    return tuple(cores[:half]), tuple(cores[half:])


def shard_cores(cores: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """Cores of each of `count` shards: their own where there is one for each, else all share."""
    if len(cores) < count:
        return [cores] * count
    borders = [round(i * len(cores) / count) for i in range(count + 1)]
    return [cores[a:b] for a, b in itertools.pairwise(borders)]


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may run on; empty where the system does not tell."""
    if sys.platform != "linux":
        return ()
    return tuple(sorted(os.sched_getaffinity(0)))


def services(plan: Plan) -> list[Service]:
    """In starting order; they are stopped in reverse: gateway, verifier, drafter.

    Raises:
        ConfigurationError: `more` has an option that is settled already.
    """
    found = [] if plan.drafter is None else _drafter(plan, plan.drafter)
    options = {
        "model": plan.model,
        "listen": plan.verifier,
        "drafter": plan.drafter or "off",
        "served-model-name": plan.name,
        "metrics": plan.metrics[0] if plan.metrics else None,
        **_compute(plan.verifier_cpus),
    }
    found.append(
        _service(
            "verifier",
            "verifier_service",
            plan.verifier,
            options,
            plan.common,
            plan.verifier_options,
            more=plan.more.get("verifier", ()),
        )
    )
    options = {
        "model": plan.model,
        "verifier": plan.verifier,
        "http": plan.http,
        "grpc": plan.grpc,
        "served-model-name": plan.name,
    }
    more = plan.more.get("gateway", ())
    gateway = _service("gateway", "gateway", plan.grpc, options, plan.gateway_options, more=more)
    # Its health says that it runs; whether it has found its verifier is what /ready tells.
    ready = partial(
        _both, gateway.is_ready, partial(_answers, f"http://{reachable(plan.http)}/ready")
    )
    found.append(replace(gateway, is_ready=ready))
    return found


def _drafter(plan: Plan, first: str) -> list[Service]:
    """The drafter's process, or its shards: the last one first, as each looks for the next."""
    addresses = (first, *plan.shards)
    count = len(addresses)
    found = []
    for index, cpus in enumerate(shard_cores(plan.drafter_cpus, count)):
        options: Options = {
            "model": plan.model,
            "listen": addresses[index],
            "served-model-name": plan.name,
            **_compute(cpus),
        }
        if count > 1:
            onward = reachable(addresses[index + 1]) if index + 1 < count else None
            options |= {"shard-index": index, "shard-count": count, "next": onward}
        if plan.metrics:
            options["metrics"] = plan.metrics[1 + index]
        name = f"drafter shard {index}" if index else "drafter"
        groups = (options, plan.common, plan.drafter_options)
        more = plan.more.get("drafter", ())
        service = _service(name, "drafter_service", addresses[index], *groups, more=more)
        # Without it the same tokens come, only later.
        found.append(replace(service, vital=False))
    return found[::-1]


async def _both(one: Ask, other: Ask) -> bool:
    return await one() and await other()


async def _answers(url: str) -> bool:
    """Whether a GET is answered with status 200 within two seconds."""
    try:
        # What the environment says about proxies is not meant for our own processes.
        async with httpx.AsyncClient(timeout=2.0, trust_env=False, verify=_NO_TLS) as client:
            return (await client.get(url)).status_code == 200
    except httpx.HTTPError:
        return False


def _compute(cpus: tuple[int, ...]) -> Options:
    """One thread for each core; without a list of cores the service decides."""
    if not cpus:
        return {}
    return {"cpus": ",".join(map(str, cpus)), "threads": len(cpus)}


def _service(
    name: str, module: str, address: str, *options: Options, more: Sequence[str] = ()
) -> Service:
    given = {
        option: str(value)
        for group in options
        for option, value in group.items()
        if value is not None
    }
    command = [sys.executable, "-m", module]
    for option, value in given.items():
        command += [f"--{option}", value]
    for word in more:
        _check_free(word, name, {*given, *_CHECKED})
    return Service(name, (*command, *more), partial(is_serving, reachable(address)))


def _check_free(word: str, name: str, taken: Collection[str]) -> None:
    """Raises ConfigurationError for an option that is settled already, or the beginning of one."""
    option = word.removeprefix("--").partition("=")[0].replace("_", "-")
    if word.startswith("--") and any(other.startswith(option) for other in taken):
        raise ConfigurationError(
            f"{word} of the {name} is settled by `slipstream up`: use its own option for it"
        )
