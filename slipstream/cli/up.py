"""`slipstream up`: a model, its processes, one line when they are ready."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from slipstream.cli.addresses import claim, reachable
from slipstream.cli.checks import (
    MOST_AHEAD,
    check_keys,
    check_lengths,
    check_shards,
    cores,
    given_plan,
    inner_on_loopback,
    metrics_addresses,
    unused_without_drafter,
    words,
)
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
from slipstream.core.extras import require
from slipstream.core.model_folder import check_split, fingerprint
from slipstream.models import resolve, served_name
from slipstream.models.progress import progress_on


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
        typer.Option(min=1, max=MOST_AHEAD, help="Most drafts ahead of the last commit."),
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
    session_store: Annotated[
        str | None,
        typer.Option(
            help="Where sessions and unfinished answers are kept: `sqlite` (a file of yours, the"
            " default), sqlite:///PATH, redis://HOST:PORT, or `off`."
        ),
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
    verifier_args: Annotated[
        str | None,
        typer.Option(
            help="Further options of the verifier, in quotes, as `--max-wait 5 --step-rows 256`:"
            " `python -m verifier_service --help` lists them."
        ),
    ] = None,
    drafter_args: Annotated[
        str | None, typer.Option(help="The same for the drafter: `python -m drafter_service`.")
    ] = None,
    gateway_args: Annotated[
        str | None, typer.Option(help="The same for the gateway: `python -m gateway`.")
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="Of all processes.")] = LogLevel.warning,
    log_format: Annotated[LogFormat, typer.Option(help="Of all processes.")] = LogFormat.text,
) -> None:
    """Serve a model: verifier, drafter and gateway as three processes, until Ctrl-C."""
    require("engine", "slipstream up")
    # Python ends at once on SIGTERM; this way downloads and conversions clean up behind them.
    signal.signal(signal.SIGTERM, _leave)
    wanted = {"--http": http, "--grpc": grpc, "--verifier-listen": verifier_listen}
    if drafter is Switch.on:
        wanted["--drafter-listen"] = drafter_listen
    else:
        unused_without_drafter(
            {
                "--layer-plan": layer_plan,
                "--kv-context": kv_context,
                "--early-stop": early_stop,
                "--window": window,
                "--kv-leases": kv_leases,
                "--drafter-cpus": drafter_cpus,
                "--drafter-args": drafter_args,
                "--drafter-shards": drafter_shards,
            }
        )
    if (drafter_shards or 1) > 1:
        check_shards(layer_plan, placement)
        placement = Placement.separate
    given = given_plan(layer_plan)
    check_lengths(draft_length, window, placement)
    shards = [f"--drafter-shards ({index})" for index in range(1, drafter_shards or 1)]
    wanted |= dict.fromkeys(shards, "127.0.0.1:0")
    processes = 1 + (drafter is Switch.on) + len(shards)
    watched = metrics_addresses(metrics, processes)
    wanted |= watched
    inner_on_loopback(wanted)
    if api_keys is not None:
        check_keys(api_keys)
    addresses = claim(wanted)
    folder = resolve(model, progress=progress_on(), verify=verify)
    check_split(folder, drafter_shards or 1)
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
        verifier_cpus=cores("--verifier-cpus", verifier_cpus, first),
        drafter_cpus=cores("--drafter-cpus", drafter_cpus, second),
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
            "session-store": session_store,
            "log-level": log_level.value,
            "log-format": log_format.value,
        },
        more={
            "verifier": words("--verifier-args", verifier_args),
            "drafter": words("--drafter-args", drafter_args),
            "gateway": words("--gateway-args", gateway_args),
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
    # Bounded: small models, sampled, may go on to the end of their context, which takes minutes.
    body = {
        "model": plan.name,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "What is a slipstream?"}],
    }
    key = ' -H "Authorization: Bearer $SLIPSTREAM_API_KEY"' if keys else ""
    with_drafter = "with" if plan.drafter else "without"
    return (
        f"Ready: {plan.name} {with_drafter} drafter. Try: "
        f"curl http://{reachable(plan.http)}/v1/chat/completions{key} "
        f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )


def _value(choice: StrEnum | None) -> object | None:
    return None if choice is None else choice.value


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _leave(number: int, frame: Any) -> NoReturn:  # noqa: ARG001 the signature of a signal handler
    sys.exit(128 + number)
