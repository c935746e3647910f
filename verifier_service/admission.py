"""Which requests can be served at all, known before they wait for their turn."""

from __future__ import annotations

from slipstream.core.errors import ContextTooLong, InvalidParameter
from slipstream.engine.checkpoint import LoadedModel
from verifier_service.generation import Generation, GenerationRequest


def admit(number: int, request: GenerationRequest, loaded: LoadedModel, room: int) -> Generation:
    """The generation of a request, under a number of its own.

    Args:
        room: most tokens of a sequence.

    Raises:
        InvalidParameter: a token or a parameter is none of this model's.
        ContextTooLong: prompt and output need more than `room`.
    """
    vocab = loaded.config.vocab_size
    if not request.prompt:
        raise InvalidParameter("the prompt is empty; it needs at least one token", param="prompt")
    beyond = next((t for t in request.prompt if not 0 <= t < vocab), None)
    if beyond is not None:
        raise InvalidParameter(
            f"the prompt holds token id {beyond}; the vocabulary has {vocab} tokens",
            param="prompt",
        )
    request.params.check_vocabulary(vocab)
    max_length = len(request.prompt) + request.stop.max_tokens
    if max_length > room:
        bound = "context window" if room == loaded.context_length else "room in the KV pool"
        raise ContextTooLong(
            f"the {bound} is {room} tokens; the prompt has {len(request.prompt)} and "
            f"max_tokens asks for {request.stop.max_tokens} more",
            param="max_tokens",
        )
    ends = request.stop.stop_token_ids
    if not request.stop.ignore_eos:
        ends = ends | loaded.eos_token_ids
    return Generation(number, request, loaded.fingerprint, ends, max_length)
