"""Settings of the drafter: command line, then SLIPSTREAM_DRAFTER_..., then defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slipstream.wire.process import ModelServiceSettings, settings_config


class Settings(ModelServiceSettings):
    """The drafter: a cheaper copy of the model that runs ahead."""

    model_config = settings_config("drafter")

    listen: str = Field("127.0.0.1:50052", description="host:port to serve gRPC on")
    layer_plan: str = Field(
        "auto", description="file of a layer plan; auto: all layers at 4 or 8 bits"
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
    kv_context: Literal["own", "prompt", "commit"] = Field(
        "prompt",
        description="keys and values of a context: own computes them, prompt fetches those of the "
        "prompt from the verifier, commit also those of what is committed",
    )
