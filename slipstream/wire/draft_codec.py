"""Translation between draft messages and the values of slipstream.core.draft."""

from __future__ import annotations

from collections.abc import Iterable

from slipstream.core.draft import (
    Close,
    Command,
    Commit,
    Open,
    Proposal,
    Refusal,
    SetPace,
    SetWindow,
)
from slipstream.core.errors import InvalidRequest
from slipstream.core.prefix import Prefix
from slipstream.wire.codec import sampling_from_proto, sampling_to_proto
from slipstream.wire.proto import drafter_pb2, types_pb2


def _prefix(prefix: Prefix) -> types_pb2.Prefix:
    return types_pb2.Prefix(length=prefix.length, hash=prefix.hash)


def command_to_proto(command: Command) -> drafter_pb2.DraftCommand:
    if isinstance(command, Commit):
        return drafter_pb2.DraftCommand(
            commit=drafter_pb2.Commit(
                sequence_id=command.sequence_id,
                prefix=_prefix(command.prefix),
                token_ids=command.tokens,
            )
        )
    if isinstance(command, Close):
        return drafter_pb2.DraftCommand(
            close=drafter_pb2.CloseSequence(sequence_id=command.sequence_id)
        )
    if isinstance(command, SetWindow):
        return drafter_pb2.DraftCommand(
            window=drafter_pb2.SetWindow(sequence_id=command.sequence_id, window=command.window)
        )
    if isinstance(command, SetPace):
        return drafter_pb2.DraftCommand(
            pace=drafter_pb2.SetPace(cores=command.cores, burst=command.burst)
        )
    return drafter_pb2.DraftCommand(
        open=drafter_pb2.OpenSequence(
            sequence_id=command.sequence_id,
            token_ids=command.tokens,
            num_prompt_tokens=command.num_prompt,
            sampling=sampling_to_proto(command.params),
            window=command.window,
            max_length=command.max_length,
            cache_salt=command.cache_salt,
        )
    )


def command_from_proto(message: drafter_pb2.DraftCommand) -> Command:
    """Raises InvalidRequest, also where the command is a Hello, which is not for the engine."""
    kind = message.WhichOneof("command")
    if kind == "commit":
        commit = message.commit
        prefix = Prefix(commit.prefix.length, commit.prefix.hash)
        return Commit(commit.sequence_id, prefix, tuple(commit.token_ids))
    if kind == "close":
        return Close(message.close.sequence_id)
    if kind == "window":
        return SetWindow(message.window.sequence_id, message.window.window)
    if kind == "pace":
        return SetPace(tuple(message.pace.cores), message.pace.burst)
    if kind != "open":
        raise InvalidRequest(
            f"a draft command must be open, commit, close, window or pace, got {kind}"
        )
    opening = message.open
    tokens = tuple(opening.token_ids)
    if not 0 < opening.num_prompt_tokens <= len(tokens) < opening.max_length:
        raise InvalidRequest(
            f"sequence {opening.sequence_id} has {len(tokens)} tokens, {opening.num_prompt_tokens} "
            f"of them prompt, and a maximum of {opening.max_length}: they do not fit together"
        )
    return Open(
        opening.sequence_id,
        tokens,
        opening.num_prompt_tokens,
        sampling_from_proto(opening.sampling),
        opening.window,
        opening.max_length,
        opening.cache_salt,
    )


def response_to_proto(
    proposals: Iterable[Proposal],
    refusals: Iterable[Refusal],
    step_seconds: float,
    computed_seconds: float = 0.0,
) -> drafter_pb2.DraftResponse:
    return drafter_pb2.DraftResponse(
        proposals=[
            drafter_pb2.Proposal(
                sequence_id=p.sequence_id,
                prefix=_prefix(p.prefix),
                token_ids=p.tokens,
                paused=p.paused,
                committed_length=p.committed,
            )
            for p in proposals
        ],
        refused=[
            drafter_pb2.SequenceRefused(sequence_id=r.sequence_id, reason=r.reason)
            for r in refusals
        ],
        draft_step_seconds=step_seconds,
        computed_seconds=computed_seconds,
    )


def proposals_from_proto(message: drafter_pb2.DraftResponse) -> list[Proposal]:
    """Chains only: a proposal with parents is a tree, which this version does not verify."""
    return [
        Proposal(
            p.sequence_id,
            Prefix(p.prefix.length, p.prefix.hash),
            tuple(p.token_ids),
            p.paused,
            p.committed_length,
        )
        for p in message.proposals
        if not p.parents
    ]


def refusals_from_proto(message: drafter_pb2.DraftResponse) -> list[Refusal]:
    return [Refusal(r.sequence_id, r.reason) for r in message.refused]
