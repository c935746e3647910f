"""Pieces, and how generations stand, as gRPC messages."""

from __future__ import annotations

from gateway.continuation import Piece
from gateway.request import GenerationRequest
from gateway.runs.answer import Answer
from gateway.runs.cursor import Trail
from gateway.runs.standing import Standing
from slipstream.wire.proto import gateway_pb2, types_pb2

Response = gateway_pb2.GatewayServiceGenerateResponse
_REASONS = {
    "stop": types_pb2.FINISH_REASON_STOP,
    "length": types_pb2.FINISH_REASON_LENGTH,
}
_STATES = {
    "in_progress": gateway_pb2.GENERATION_STATUS_IN_PROGRESS,
    "completed": gateway_pb2.GENERATION_STATUS_COMPLETED,
    "failed": gateway_pb2.GENERATION_STATUS_FAILED,
    "interrupted": gateway_pb2.GENERATION_STATUS_INTERRUPTED,
}


def response_of(piece: Piece, answer: Answer, trail: Trail | None) -> Response:
    """One message of a stream; `trail` gives it its event id."""
    response = Response(
        request_id=answer.id, index=piece.index, text=piece.text, tokens=piece.tokens
    )
    if piece.finish_reason is not None:
        _end(response, piece, answer.request)
    if trail is not None:
        trail.took(piece)
        if piece.finish_reason is not None:
            trail.ended(piece.index)
        response.event_id = trail.id
    return response


def _end(response: Response, piece: Piece, request: GenerationRequest) -> None:
    """What a continuation's last message tells of all of it."""
    assert piece.finish_reason is not None
    response.finish_reason = _REASONS[piece.finish_reason]
    response.usage.prompt_tokens = len(request.prompts[piece.index // request.n])
    response.usage.completion_tokens = piece.completion_tokens
    response.usage.cached_prompt_tokens = piece.cached_tokens
    response.seed = request.choice_seed(piece.index)
    if piece.stats is not None:
        response.stats.CopyFrom(piece.stats)
    if piece.session is not None:
        response.session.CopyFrom(piece.session)


def standing_of(standing: Standing) -> gateway_pb2.GetGenerationResponse:
    """What there is of a generation, one result for each continuation."""
    request = standing.request
    name = standing.record.request_id
    results = [
        Response(request_id=name, index=index) for index in range(len(request.prompts) * request.n)
    ]
    for piece in standing.pieces:
        result = results[piece.index]
        result.text += piece.text
        result.tokens.extend(piece.tokens)
        if piece.finish_reason is not None:
            _end(result, piece, request)
    told = gateway_pb2.GetGenerationResponse(
        request_id=name, status=_STATES[standing.state], results=results
    )
    if standing.state == "failed" and standing.failure is not None:
        told.error_code = standing.failure.code
        told.error_message = standing.failure.message
    return told
