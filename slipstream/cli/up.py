"""`slipstream up`: a model, its processes, one line when they are ready."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from slipstream.cli.addresses import claim, reachable
from slipstream.cli.choices import (
    Automatic,
    Device,
    Dtype,
    Exactness,
    KvContext,
    LogFormat,
    LogLevel,
    Placement,
    Switch,
    TargetPrecision,
)
from slipstream.cli.services import Plan, services, split_cores, usable_cores
from slipstream.cli.supervisor import Policy, Supervisor
from slipstream.core.errors import ConfigurationError
from slipstream.core.fingerprint import fingerprint
from slipstream.core.layer_plan import LayerPlan
from slipstream.models import resolve, served_name
from slipstream.models.progress import progress_on
from slipstream.wire.address import join, split

_CHECK_SECONDS = 30.0
_MOST_AHEAD = 64


def up(
    model: Annotated[
        str, typer.Option(help="`default`, a folder, a .gguf file or a hub name owner/name.")
    ] = "default",
    drafter: Annotated[Switch, typer.Option(help="Serve with speculation or without.")] = Switch.on,
    layer_plan: Annotated[
        str | None, typer.Option(help="The drafter's layer plan: a file, `auto` or `adaptive`.")
    ] = None,
    kv_context: Annotated[
        KvContext | None,
        typer.Option(help="Keys and values that the drafter fetches from the verifier."),
    ] = None,
    drafter_shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Split the drafter over so many processes, a part of it in each, with cores of its"
            " own: --placement is separate then.",
        ),
    ] = None,
    placement: Annotated[
        Placement,
        typer.Option(
            help="Cores of verifier and drafter: half each, all in turn (not with shards), or the"
            " faster."
        ),
    ] = Placement.auto,
    ngram: Annotated[
        Automatic | None, typer.Option(help="Guesses from the text itself, beside drafts.")
    ] = None,
    early_stop: Annotated[
        Automatic | None, typer.Option(help="No drafts behind tokens that the drafter doubts.")
    ] = None,
    draft_length: Annotated[
        str | None,
        typer.Option(
            help="Most drafts of a step, up to --window; `auto`: what promises the most tokens/s."
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST_AHEAD, help="Most drafts ahead of the last commit."),
    ] = None,
    kv_leases: Annotated[
        int | None,
        typer.Option(min=0, help="Most leases on the verifier's keys and values; 0: none."),
    ] = None,
    http: Annotated[str, typer.Option(help="Address of the HTTP API.")] = "127.0.0.1:8000",
    grpc: Annotated[str, typer.Option(help="Address of the gRPC API.")] = "127.0.0.1:50050",
    verifier_listen: Annotated[
        str, typer.Option(help="Loopback address of the verifier; port 0 takes a free one.")
    ] = "127.0.0.1:50051",
    drafter_listen: Annotated[
        str, typer.Option(help="Loopback address of the drafter; port 0 takes a free one.")
    ] = "127.0.0.1:50052",
    served_model_name: Annotated[
        str | None, typer.Option(help="Name by which clients ask for the model.")
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="File of API keys; without it loopback only.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Data type of the weights.")] = None,
    precision: Annotated[
        TargetPrecision | None,
        typer.Option(help="Of the target model: native, or int8 for weights and activations."),
    ] = None,
    device: Annotated[Device | None, typer.Option(help="Where both models compute.")] = None,
    exactness: Annotated[
        Exactness | None,
        typer.Option(help="strict: bitwise equality in bfloat16 too (auto: where it is free)."),
    ] = None,
    verifier_cpus: Annotated[
        str | None, typer.Option(help="Cores that the verifier may use, as 0,1.")
    ] = None,
    drafter_cpus: Annotated[
        str | None, typer.Option(help="Cores that the drafter may use.")
    ] = None,
    kv_cache_gib: Annotated[
        float | None, typer.Option(min=0.001, help="Size of each KV pool in GiB.")
    ] = None,
    max_sequences: Annotated[
        int | None, typer.Option(min=1, help="Most sequences computed at once.")
    ] = None,
    max_queue: Annotated[int | None, typer.Option(min=1, help="Most requests waiting.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the prepared model's hashes before starting.")
    ] = False,
    start_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds until all must be ready.")
    ] = 600.0,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Loopback address of the verifier's metrics; the drafter and its shards take the"
            " ports behind it. The gateway's are at /metrics of its HTTP address."
        ),
    ] = None,
    trace_rounds: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of rounds with the drafter that traced requests show."
        ),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="Of all processes.")] = LogLevel.warning,
    log_format: Annotated[LogFormat, typer.Option(help="Of all processes.")] = LogFormat.text,
) -> None:
    """Serve a model: verifier, drafter and gateway as three processes, until Ctrl-C."""
    # Python ends at once on SIGTERM; this way downloads and conversions clean up behind them.
    signal.signal(signal.SIGTERM, _leave)
    wanted = {"--http": http, "--grpc": grpc, "--verifier-listen": verifier_listen}
    if drafter is Switch.on:
        wanted["--drafter-listen"] = drafter_listen
    else:
        _unused_without_drafter(
            {
                "--layer-plan": layer_plan,
                "--kv-context": kv_context,
                "--early-stop": early_stop,
                "--window": window,
                "--kv-leases": kv_leases,
                "--drafter-cpus": drafter_cpus,
                "--drafter-shards": drafter_shards,
            }
        )
    if (drafter_shards or 1) > 1:
        _check_shards(layer_plan, placement)
        placement = Placement.separate
    given = _given_plan(layer_plan)
    _check_lengths(draft_length, window, placement)
    shards = [f"--drafter-shards ({index})" for index in range(1, drafter_shards or 1)]
    wanted |= dict.fromkeys(shards, "127.0.0.1:0")
    processes = 1 + (drafter is Switch.on) + len(shards)
    watched = _metrics_addresses(metrics, processes)
    wanted |= watched
    _inner_on_loopback(wanted)
    if api_keys is not None:
        _check_keys(api_keys)
    addresses = claim(wanted)
    folder = resolve(model, progress=progress_on(), verify=verify)
    if given is not None and given.model_fingerprint:
        given.check_model(fingerprint(folder))
    apart = placement is Placement.separate
    first, second = split_cores(usable_cores(), drafter is Switch.on, apart=apart)
    plan = Plan(
        model=folder,
        name=served_model_name or served_name(model),
        http=addresses["--http"],
        grpc=addresses["--grpc"],
        verifier=addresses["--verifier-listen"],
        drafter=addresses.get("--drafter-listen"),
        shards=tuple(addresses[shard] for shard in shards),
        metrics=tuple(addresses[option] for option in watched),
        verifier_cpus=_cores("--verifier-cpus", verifier_cpus, first),
        drafter_cpus=_cores("--drafter-cpus", drafter_cpus, second),
        common={
            "device": _value(device),
            "kv-cache-gib": kv_cache_gib,
            "log-level": log_level.value,
            "log-format": log_format.value,
        },
        verifier_options={
            "dtype": _value(dtype),
            "precision": _value(precision),
            "exactness": _value(exactness),
            "max-sequences": max_sequences,
            "max-queue": max_queue,
            "placement": placement.value,
            "ngram": _value(ngram),
            "draft-length": draft_length,
            "window": window,
            "kv-leases": kv_leases,
            "trace-rounds": trace_rounds,
        },
        drafter_options={
            "layer-plan": layer_plan,
            "kv-context": _value(kv_context),
            "ngram": _value(ngram),
            "early-stop": _value(early_stop),
            "dtype": _value(dtype),
        },
        gateway_options={
            "api-keys": api_keys,
            "log-level": log_level.value,
            "log-format": log_format.value,
        },
    )
    _say(f"Starting {plan.name}" + ("" if api_keys else " (no --api-keys: for this machine only)"))
    asyncio.run(serve(plan, Policy(ready=start_timeout), keys=api_keys is not None))


async def serve(plan: Plan, policy: Policy, *, keys: bool) -> None:
    """Runs the plan's services until SIGINT, SIGTERM or SIGHUP. Raises what Supervisor.run does."""
    supervisor = Supervisor(services(plan), _say, policy)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.stop)
    await supervisor.run(lambda: typer.echo(ready_line(plan, keys=keys)))
    _say("Stopped")


def ready_line(plan: Plan, *, keys: bool) -> str:
    """What is served where, and a command to paste that shows it."""
    body = {
        "model": plan.name,
        "messages": [{"role": "user", "content": "What is a slipstream?"}],
    }
    key = ' -H "Authorization: Bearer $SLIPSTREAM_API_KEY"' if keys else ""
    with_drafter = "with" if plan.drafter else "without"
    return (
        f"Ready: {plan.name} {with_drafter} drafter. Try: "
        f"curl http://{reachable(plan.http)}/v1/chat/completions{key} "
        f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )


def _unused_without_drafter(given: Mapping[str, object | None]) -> None:
    for option, value in given.items():
        if value is not None:
            raise ConfigurationError(
                f"{option} is for the drafter, and --drafter is off: leave one of them out"
            )


def _metrics_addresses(first: str | None, processes: int) -> dict[str, str]:
    """Addresses by the words that name them in an error: one for each process, in a row.

    Raises:
        ConfigurationError: there are not so many ports behind the first.
    """
    if first is None:
        return {}
    host, port = split(first, "--metrics")
    if port and port + processes > 2**16:
        raise ConfigurationError(f"--metrics {first}: {processes} ports in a row are needed")
    ports = [port and port + index for index in range(processes)]
    names = ("--metrics", *(f"--metrics ({index})" for index in range(1, processes)))
    return {name: join(host, port) for name, port in zip(names, ports, strict=True)}


def _inner_on_loopback(addresses: Mapping[str, str]) -> None:
    """Verifier and drafter know no keys: whoever reaches them can use them.

    Raises:
        ConfigurationError: another machine could.
    """
    for option in ("--verifier-listen", "--drafter-listen", "--metrics"):
        if option in addresses and not _is_loopback(split(addresses[option], option)[0]):
            raise ConfigurationError(
                f"{option} {addresses[option]} is open to other machines, and what listens there"
                " asks for no keys: use 127.0.0.1; on a cluster start the services by themselves,"
                " behind network policies"
            )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_keys(file: Path) -> None:
    """Asks the gateway's own check, so that the error comes once and before anything starts.

    Raises:
        ConfigurationError: what is wrong with the file.
    """
    command = [sys.executable, "-m", "gateway.keys", "check", str(file)]
    try:
        ended = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_CHECK_SECONDS
        )
    except subprocess.TimeoutExpired as failure:
        raise ConfigurationError(
            f"--api-keys: {file} could not be read in {_CHECK_SECONDS:g} s"
        ) from failure
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise ConfigurationError(f"--api-keys: {lines[-1].removeprefix('error: ')}")


def _cores(option: str, given: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    if given is None:
        return default
    try:
        cores = tuple(int(core) for core in given.split(","))
    except ValueError:
        raise ConfigurationError(f"{option} must be core numbers as 0,1, got {given!r}") from None
    missing = sorted(set(cores) - set(usable_cores()))
    if missing:
        raise ConfigurationError(f"{option}: there is no core {missing[0]} for this process")
    return cores


def _check_lengths(draft_length: str | None, window: int | None, placement: Placement) -> None:
    """Where no window is given the verifier knows its own.

    Raises:
        ConfigurationError: no number of drafts, more than there can be, or not in that placement.
    """
    if draft_length in (None, "auto"):
        return
    most = _MOST_AHEAD if window is None else window
    if re.fullmatch("[0-9]{1,4}", draft_length) is None or not 1 <= int(draft_length) <= most:
        limit = f"{most}" if window is None else f"{most}, which is --window"
        raise ConfigurationError(
            f"--draft-length must be auto or a number from 1 to {limit}, got {draft_length!r}"
        )
    if placement is Placement.shared:
        raise ConfigurationError(
            "--draft-length N takes what is there without waiting, and --placement shared lets the"
            " verifier wait: leave one of the two at auto"
        )


def _check_shards(layer_plan: str | None, placement: Placement) -> None:
    """Raises ConfigurationError where a drafter in shards cannot do what was asked for."""
    if layer_plan == "adaptive":
        raise ConfigurationError(
            "--layer-plan adaptive needs a drafter in one piece: leave out --drafter-shards, or "
            "take a file or auto"
        )
    if placement is Placement.shared:
        raise ConfigurationError(
            "--placement shared needs a drafter in one piece, as shards are processes with cores of"
            " their own: leave out --drafter-shards, or take separate or auto"
        )


def _given_plan(layer_plan: str | None) -> LayerPlan | None:
    """Raises ConfigurationError where the file is missing or is no layer plan."""
    if layer_plan in (None, "auto", "adaptive"):
        return None
    return LayerPlan.load(Path(layer_plan))


def _value(choice: StrEnum | None) -> object | None:
    return None if choice is None else choice.value


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _leave(number: int, frame: Any) -> NoReturn:  # noqa: ARG001 the signature of a signal handler
    sys.exit(128 + number)
