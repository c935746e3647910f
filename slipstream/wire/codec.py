"""Translation between messages and the types of slipstream.core. Validation happens in core."""

from __future__ import annotations

import secrets

from slipstream.core.params import SamplingParams, StopConditions
from slipstream.wire.proto import types_pb2


def random_seed() -> int:
    """A seed for a request that brings none. Below 2**53, so that JSON carries it exactly."""
    return secrets.randbelow(2**53)


def sampling_to_proto(params: SamplingParams) -> types_pb2.SamplingParams:
    return types_pb2.SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=dict(params.logit_bias),
        seed=params.seed,
    )


def sampling_from_proto(message: types_pb2.SamplingParams) -> SamplingParams:
    """Raises InvalidParameter. An unset seed becomes a random one.

    Values pass through float32 on the wire, so both services compute with the same ones.
    """
    return SamplingParams(
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        top_k=message.top_k if message.HasField("top_k") else 0,
        min_p=message.min_p if message.HasField("min_p") else 0.0,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=(
            message.repetition_penalty if message.HasField("repetition_penalty") else 1.0
        ),
        logit_bias=dict(message.logit_bias),
        seed=message.seed if message.HasField("seed") else random_seed(),
    )


def stop_to_proto(stop: StopConditions) -> types_pb2.StopConditions:
    return types_pb2.StopConditions(
        max_tokens=stop.max_tokens,
        stop_token_ids=sorted(stop.stop_token_ids),
        ignore_eos=stop.ignore_eos,
    )


def stop_from_proto(message: types_pb2.StopConditions) -> StopConditions:
    """Raises InvalidParameter."""
    return StopConditions(
        max_tokens=message.max_tokens,
        stop_token_ids=frozenset(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
    )
