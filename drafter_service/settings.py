"""Settings of the drafter: command line, then SLIPSTREAM_DRAFTER_..., then defaults."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from slipstream.wire.address import split
from slipstream.wire.process import ModelServiceSettings, settings_config

ADAPTIVE = "adaptive"


class Settings(ModelServiceSettings):
    """The drafter: a cheaper copy of the model that runs ahead."""

    model_config = settings_config("drafter")

    listen: str = Field("127.0.0.1:50052", description="host:port to serve gRPC on")
    layer_plan: str = Field(
        "auto",
        description="file of a layer plan; auto: the one found for this model, or all layers at 4 "
        "or 8 bits; adaptive: begins with that and tries others on spare time",
    )
    ngram: Literal["off", "on", "auto"] = Field(
        "auto", description="check n-gram guesses with the drafts; auto: where it is faster"
    )
    early_stop: Literal["off", "on", "auto"] = Field(
        "auto", description="no drafts behind unlikely ones; auto: where they would cost something"
    )
    slowdown: float = Field(
        1.0, ge=1, description="for drills: every forward pass takes so many times as long"
    )
    kv_transport: Literal["auto", "grpc"] = Field(
        "auto", description="auto: through shared memory where the verifier is on this host"
    )
    kv_context: Literal["own", "prompt", "commit"] = Field(
        "prompt",
        description="keys and values of a context: own computes them, prompt fetches those of the "
        "prompt from the verifier, commit also those of what is committed",
    )
    shard_count: int = Field(
        1, ge=1, description="parts that the drafter is split into, each a process of its own"
    )
    shard_index: int = Field(
        0, ge=0, description="which part this is; verifiers talk to shard 0, the others serve it"
    )
    next: str = Field("", description="host:port of the next shard; empty on the last one")
    ordinal: int | None = Field(
        None,
        ge=0,
        description="instead of --shard-index: this process's number among all shards of all"
        " drafters, as a StatefulSet's pods have; --shard-count of them in a row are a drafter",
    )
    peers: str = Field(
        "",
        description="instead of --next: host:port of those processes, with {} for the ordinal",
    )
    shard_timeout: float = Field(
        10.0, gt=0, description="seconds until a pass that does not come back means a dead shard"
    )
    shard_passes: int = Field(
        0, ge=0, description="passes under way at once; 0: as many as shards have own devices"
    )

    @property
    def index(self) -> int:
        """Which part of the drafter this is."""
        return self.shard_index if self.ordinal is None else self.ordinal % self.shard_count

    @property
    def next_address(self) -> str:
        """host:port of the next shard; empty on the last one."""
        if self.ordinal is None:
            return self.next
        last = self.index == self.shard_count - 1
        return "" if last else self.peers.replace("{}", str(self.ordinal + 1))

    @model_validator(mode="after")
    def _row(self) -> Self:
        self._check_ordinal()
        if self.shard_index >= self.shard_count:
            raise ValueError("--shard-index counts from 0 and must be below --shard-count")
        if bool(self.next_address) != (self.index < self.shard_count - 1):
            raise ValueError("every shard but the last one needs --next, and only those")
        if self.layer_plan == ADAPTIVE and self.shard_count > 1:
            raise ValueError(
                "--layer-plan adaptive needs a drafter in one piece, as a skip set that moves "
                "would move layers between shards; take a file or auto, or no --shard-count"
            )
        return self

    def _check_ordinal(self) -> None:
        if (self.ordinal is None) != (not self.peers):
            raise ValueError("--ordinal and --peers belong together: give both or none")
        if self.ordinal is None:
            return
        if self.model_fields_set & {"shard_index", "next"}:
            raise ValueError(
                "--ordinal and --peers say what --shard-index and --next would: leave those out"
            )
        if "{}" not in self.peers:
            raise ValueError(
                f"--peers must have {{}} where an address has the ordinal, got {self.peers!r}"
            )
        split(self.peers.replace("{}", "0"), "--peers")
