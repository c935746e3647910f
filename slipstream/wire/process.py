"""How every service reads its settings, logs, starts and stops."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from slipstream.core.errors import ConfigurationError, InternalError, SlipstreamError
from slipstream.wire.starting import ending_at_once
from slipstream.wire.telemetry.logs import LogFormat, LogLevel, configure, fatal
from slipstream.wire.tls import TlsSettings

S = TypeVar("S", bound=BaseSettings)
T = TypeVar("T", bound="TelemetrySettings")


def settings_config(role: str) -> SettingsConfigDict:
    """Command line first, then the environment, then defaults."""
    return SettingsConfigDict(
        env_prefix=f"SLIPSTREAM_{role.upper()}_",
        cli_prog_name=f"python -m {role}_service",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
    )


def _standard_endpoint() -> str:
    """OpenTelemetry's own variables, which a cluster may set for all of its pods."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


class TelemetrySettings(BaseSettings):
    """What every service tells of itself, and where."""

    log_level: LogLevel = Field("info", description="log level")
    log_format: LogFormat = Field("text", description="of log lines; json: one object each")
    otlp_endpoint: str = Field(
        default_factory=_standard_endpoint,
        description="URL of an OpenTelemetry collector (OTLP over gRPC) that takes traces; default:"
        " $OTEL_EXPORTER_OTLP_ENDPOINT; empty: no traces",
    )


class ModelServiceSettings(TelemetrySettings, TlsSettings):
    """What verifier and drafter have in common."""

    model: Path = Field(description="folder with config.json, safetensors and tokenizer")
    served_model_name: str = Field("", description="name to report; empty: the folder's name")
    dtype: Literal["auto", "bfloat16", "float32"] = Field("auto", description="of the weights")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="torch threads; 0: one for each core allowed")
    cpus: str = Field("", description="cores to run on, as 0 or 0,1; empty: all")
    kv_cache_gib: float = Field(2.0, gt=0, description="size of the KV pool in GiB")
    max_sequences: int = Field(128, ge=1, description="most sequences at once")
    stop_grace: float = Field(5.0, ge=0, description="seconds that calls get when it stops")
    zone: str = Field(
        "",
        description="where it runs, as you call it; peers of one zone are preferred;"
        " k8s:///SERVICE: its pod's, as the EndpointSlices of its Service say",
    )
    metrics: str = Field(
        "off", description="host:port to answer Prometheus on, at /metrics, or off"
    )
    health: str = Field(
        "off",
        description="host:port of a plain gRPC health server for an orchestrator's probes:"
        " readiness, liveness and startup; off: none",
    )
    # A first step may compile for a minute, and a chunk of a prompt takes a large model on a slow
    # CPU another; a restart for nothing costs all sequences and a load.
    hung_step: float = Field(
        300.0,
        gt=0,
        description="seconds after which a step of the engine counts as hung, and liveness fails",
    )

    @property
    def model_name(self) -> str:
        return self.served_model_name or self.model.resolve().name


def read_settings(kind: type[S], arguments: Sequence[str]) -> S:
    """Settings from a command line without the program's name, and the environment.

    Raises:
        ConfigurationError: names the setting and what is wrong with it.
    """
    try:
        return kind(_cli_parse_args=list(arguments))
    except SettingsError as failure:
        # The first line says what is wrong; it is of argparse, which would add pages of usage.
        reason = str(failure).splitlines()[0].removeprefix("error parsing CLI: ")
        raise ConfigurationError(f"{reason}; --help lists the options") from failure
    except ValidationError as failure:
        first = failure.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        # What concerns several settings names them itself.
        option = str(first["loc"][0]).replace("_", "-") if first["loc"] else ""
        raise ConfigurationError(f"--{option}: {message}" if option else message) from failure


def run_service(
    role: str,
    kind: type[T],
    serve: Callable[[T], Coroutine[Any, Any, None]],
    arguments: Sequence[str],
) -> int:
    """Runs a service until SIGTERM or SIGINT, which end it at once until it serves.

    Args:
        serve: takes the settings; serves until `orderly_stop` says so, then stops cleanly.

    Returns:
        The exit code: 0 after a clean stop, 2 after one clear line on stderr where a setting, a
        file or a port is unusable, 1 after a fault of our own.
    """
    try:
        settings = read_settings(kind, arguments)
        configure(role, settings.log_level, settings.log_format)
        with ending_at_once():
            asyncio.run(serve(settings))
    except InternalError:
        logging.getLogger(role).exception("ended by an internal error")
        return 1
    except SlipstreamError as failure:
        fatal(role, failure.message)
        return 2
    return 0


async def until_stopped(stop: asyncio.Event, running: asyncio.Future[None]) -> None:
    """Waits for the event, or for the engine to end by itself, which it never should.

    Raises:
        InternalError: the engine failed; the process must not go on looking healthy.
    """
    asked = asyncio.ensure_future(stop.wait())
    waits: set[asyncio.Future[Any]] = {asked, running}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if running.done():
        raise InternalError("the engine stopped by itself") from running.exception()
