"""Settings of the verifier: command line, then SLIPSTREAM_VERIFIER_..., then defaults."""

from __future__ import annotations

import socket
from typing import Annotated, Literal

from pydantic import Field, model_validator

from slipstream.core.errors import ConfigurationError
from slipstream.discovery.endpoints import Endpoints
from slipstream.wire.address import join, split
from slipstream.wire.process import ModelServiceSettings, settings_config
from verifier_service.generation import MOST_PENDING
from verifier_service.lengths import AHEAD


class Settings(ModelServiceSettings):
    """The verifier: holds the full model and decides every token."""

    model_config = settings_config("verifier")

    listen: str = Field("127.0.0.1:50051", description="host:port to serve gRPC on")
    drafter: str = Field(
        "off",
        description="the drafter, or several to choose one from: host:port, dns:///name:port, or"
        " k8s:///SERVICE:PORT for the pods of a Kubernetes Service, separated by commas; off: none",
    )
    precision: Literal["native", "int8"] = Field(
        "native",
        description="of the target model itself; int8: weights and activations at 8 bits, another"
        " function than native",
    )
    exactness: Literal["auto", "fast", "strict"] = Field(
        "auto",
        description="strict: bitwise the same tokens in any batch; auto: strict where it is free",
    )
    max_queue: int = Field(1024, ge=1, description="most requests that wait for a place")
    max_wait: float = Field(
        10.0,
        gt=0,
        description="seconds that a request may be expected to wait until its prompt is begun; in"
        " lasting overload two fifths of that",
    )
    send_timeout: float = Field(
        300.0,
        gt=0,
        description="seconds after which a client that does not read is cut; more than the"
        " gateway's own, which knows its clients better",
    )
    window: Annotated[int, Field(ge=1, le=MOST_PENDING)] | Literal["auto"] = Field(
        "auto",
        description="most drafts ahead of the last commit; auto: 8 side by side, and as many as pay"
        " (up to 12) where the two take turns",
    )
    draft_length: Annotated[int, Field(ge=1, le=MOST_PENDING)] | Literal["auto"] = Field(
        "auto", description="most drafts of a step; auto: as many as pay, and waiting where it does"
    )
    ngram: Literal["off", "on", "auto"] = Field(
        "auto", description="guesses from the text itself beside drafts; auto: where they pay"
    )
    placement: Literal["auto", "separate", "shared"] = Field(
        "auto",
        description="where drafter and verifier share cores: side by side on half of them each, in"
        " turn on all of them, or (auto) whichever measures faster",
    )
    step_rows: int = Field(512, ge=64, description="most rows of a step, prompts included")
    prefill_stretch: float = Field(
        1.75, ge=1, description="most times as long that a step may take because of prompts"
    )
    prefill_chunk: int = Field(
        256,
        ge=16,
        multiple_of=16,
        description="prompt tokens of a step where exactness strict allows no other shape",
    )
    advertise: str = Field(
        "",
        description="host:port by which drafters and other verifiers reach it for keys and values;"
        " empty: --listen",
    )
    kv_leases: int = Field(512, ge=0, description="most leases on keys and values; 0: none")
    kv_lease_share: float = Field(
        0.25, ge=0, le=1, description="part of the KV pool that leases may keep beyond sequences"
    )
    trace_rounds: float = Field(
        0.0, ge=0, le=1, description="share of rounds with the drafter that traced requests show"
    )
    speculative: bool = Field(True, description="speculate where a request does not say")
    stop_grace: float = Field(
        10.0,
        ge=0,
        description="seconds that generations get when it stops, to end or to move to another"
        " verifier",
    )

    @model_validator(mode="after")
    def _drafters_can_be_read(self) -> Settings:
        if self.drafter != "off":
            Endpoints(self.drafter, "--drafter", "drafter")
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> Settings:
        most = AHEAD if self.window == "auto" else self.window
        if self.draft_length != "auto" and self.draft_length > most:
            raise ValueError(
                f"--draft-length {self.draft_length} is more than the {most} drafts that --window"
                f" {self.window} lets be there: raise --window or lower it"
            )
        if self.draft_length != "auto" and self.placement == "shared":
            raise ValueError(
                "--draft-length N takes what is there without waiting, and --placement shared lets"
                " the verifier wait: leave one of the two at auto"
            )
        return self


def advertised(settings: Settings) -> str:
    """host:port for drafters and other verifiers. Of a wildcard address, the one that packets to
    the (first) drafter carry; without one, the host's name."""
    if settings.advertise:
        return settings.advertise
    host, port = split(settings.listen, "--listen", any_host=True)
    if host not in ("", "0.0.0.0", "::", "*"):  # noqa: S104 compared with, not bound
        return settings.listen
    drafter, _, _ = settings.drafter.partition(",")
    return join(_own_host(drafter.strip().removeprefix("dns:///")), port)


def _own_host(peer: str) -> str:
    """Our address as `peer` sees it; nothing is sent. The host's name where there is no route."""
    try:
        host, port = split(peer)
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except (OSError, ConfigurationError):
        return socket.gethostname()
