"""Settings: command line, then environment (SLIPSTREAM_GATEWAY_...), then defaults."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from gateway.verifiers.served import Limits
from slipstream.core.errors import ConfigurationError
from slipstream.discovery.endpoints import Endpoints
from slipstream.discovery.zone import Zone
from slipstream.wire.address import split
from slipstream.wire.process import TelemetrySettings, read_settings
from slipstream.wire.tls import TlsSettings


class Settings(TelemetrySettings, TlsSettings):
    """The front door of Slipstream: OpenAI-compatible HTTP and gRPC."""

    model_config = SettingsConfigDict(
        env_prefix="SLIPSTREAM_GATEWAY_",
        cli_prog_name="python -m gateway",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        frozen=True,
        extra="forbid",
    )

    model: Path = Field(description="model folder; its tokenizer and chat template are used")
    verifier: str = Field(
        "127.0.0.1:50051",
        description="host:port of the verifier, or of several, with commas between; dns:///name:port"
        " for all addresses of a name, looked up again and again; k8s:///SERVICE:PORT or"
        " k8s://NAMESPACE/SERVICE:PORT for the pods of a Kubernetes Service, watched",
    )
    zone: str = Field(
        "",
        description="where the gateway runs; verifiers of one zone are preferred; k8s:///SERVICE:"
        " its pod's, as the EndpointSlices of its Service say",
    )
    http: str = Field("127.0.0.1:8000", description="host:port to serve HTTP on")
    grpc: str = Field("127.0.0.1:50050", description="host:port to serve gRPC on")
    api_keys: Path | None = Field(
        None, description="file of API keys (python -m gateway.keys); without it, loopback only"
    )
    served_model_name: str | None = Field(
        None, description="name that clients use; default: the folder's name"
    )
    max_requests: int = Field(
        1024, ge=1, description="most requests at once; more are refused with 429"
    )
    max_requests_per_key: int = Field(
        0, ge=0, description="most requests at once with one API key; 0: no bound of its own"
    )
    isolate_caches: bool = Field(
        True, description="whether each API key has prefix caches of its own"
    )
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1024, description="largest request body")
    first_token_timeout: float = Field(
        600.0, gt=0, description="seconds that a request may wait for its first token"
    )
    # One that is well gives a sign of life every 2 s, or after each step where one takes longer: a
    # chunk of a prompt on a slow CPU, or a first step that compiles. Longer than all of these, and
    # short enough that a client whose stream hangs sees a pause and not its own timeout.
    idle_timeout: float = Field(
        30.0,
        gt=0,
        description="seconds between two messages of a verifier in one stream, which goes on at"
        " another one then; one that is well gives a sign of life every 2 s, whatever it waits for",
    )
    lost_after: float = Field(
        5.0, gt=0, description="seconds after which a verifier is lost that answers nothing"
    )
    failover_timeout: float = Field(
        30.0,
        ge=0,
        description="seconds that a generation waits for a verifier that goes on with it, where its"
        " own was lost",
    )
    max_failovers: int = Field(
        5,
        ge=0,
        description="times in a row that a generation without a new token goes on elsewhere; 0: the"
        " client is told of every verifier that is lost",
    )
    send_timeout: float = Field(
        120.0, gt=0, description="seconds that a client may leave a stream unread"
    )
    session_store: str = Field(
        "sqlite",
        description="where sessions and generations are kept: sqlite (a file of the user's),"
        " sqlite:///PATH, redis://..., rediss://..., redis+sentinel://..., redis+cluster://...,"
        " or off",
    )
    store_timeout: float = Field(
        0.25, gt=0, description="seconds that a call to the session store may take"
    )
    resume: Literal["on", "off"] = Field(
        "on", description="off: streams are not kept, and end with their connection"
    )
    log_ttl: float = Field(
        600.0, ge=1, description="seconds for which a generation is kept after its last token"
    )
    background_ttl: float = Field(3600.0, ge=1, description="the same for one in the background")
    max_background: int = Field(
        256, ge=0, description="most background requests at once; they hold no place of the others"
    )
    background_timeout: float = Field(
        3600.0,
        gt=0,
        description="seconds after which a background request that cannot be served has failed",
    )
    session_ttl: float = Field(
        86400.0, gt=0, description="seconds for which a session is kept after its last turn"
    )
    max_session_ttl: float = Field(
        30 * 86400.0, gt=0, description="the most seconds that a session may ask for"
    )
    max_session_bytes: int = Field(
        1024 * 1024,
        ge=1024,
        description="largest session; a turn that would begin beyond it is refused",
    )
    max_sessions_per_key: int = Field(
        10_000, ge=0, description="most sessions of one API key; 0: no bound"
    )
    max_generations_per_key: int = Field(
        100_000,
        ge=0,
        description="most generations that are kept for one API key, ended ones included; beyond it"
        " streams are not kept, and what must be kept is refused; 0: no bound",
    )
    stop_grace: float = Field(
        10.0, ge=0, description="seconds that requests in progress get when the gateway stops"
    )

    @property
    def model_name(self) -> str:
        return self.served_model_name or self.model.resolve().name

    @property
    def http_address(self) -> tuple[str, int]:
        return split(self.http, "--http")

    @property
    def verifiers(self) -> Endpoints:
        """Raises ConfigurationError: --verifier is malformed."""
        return Endpoints(self.verifier, "--verifier", "verifier")

    @property
    def limits(self) -> Limits:
        return Limits(
            first_token=self.first_token_timeout,
            idle=self.idle_timeout,
            lost_after=self.lost_after,
            failover=self.failover_timeout,
            failovers=self.max_failovers,
        )

    def check(self) -> None:
        """Raises ConfigurationError for addresses that are malformed, or open without keys."""
        _ = self.verifiers, Zone(self.zone)
        if self.session_ttl > self.max_session_ttl:
            raise ConfigurationError(
                f"--session-ttl {self.session_ttl:g} is beyond --max-session-ttl"
                f" {self.max_session_ttl:g}"
            )
        for option, address in (("--http", self.http), ("--grpc", self.grpc)):
            host, _ = split(address, option)
            if self.api_keys is None and not _is_loopback(host):
                raise ConfigurationError(
                    f"{option} {address} is open to other machines: give --api-keys FILE"
                    " (made by `python -m gateway.keys add NAME FILE`), or use 127.0.0.1"
                )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load(arguments: Sequence[str]) -> Settings:
    """Settings from a command line without the program's name, and the environment.

    Raises:
        ConfigurationError: names the setting and what is wrong with it.
    """
    settings = read_settings(Settings, arguments)
    settings.check()
    return settings
