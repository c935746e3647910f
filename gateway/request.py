"""What a front door asks of the core, and the limits that it is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gateway.terms import Terms
from gateway.verifiers.served import ServedModel
from slipstream.core.errors import ContextTooLong, InvalidParameter
from slipstream.core.params import MAX_LOGPROBS, MAX_SEED, SamplingParams, StopConditions

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_CONTINUATIONS = 128


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a front door asks for; held to the limits by `check`.

    Attributes:
        request_id: names the request to the verifier and in the log.
        operation: what traces call it (OpenTelemetry's `gen_ai.operation.name`).
        prompts: token ids; continuation i of prompt p has index p * n + i.
        sampling: continuation i of each prompt is drawn with seed + i.
        max_tokens: None for as many as the context window takes.
        default_max_tokens: used when max_tokens is None; None for no default.
        stop_strings: end the text where one begins.
        n: continuations of each prompt.
        speculative: None for the verifier's default.
        logprobs: None for none, k for the k most likely beside the chosen token.
        terms: for whom, how urgently, until when.
    """

    request_id: str
    prompts: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    operation: Literal["chat", "text_completion"] = "text_completion"
    max_tokens: int | None = None
    default_max_tokens: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    stop_strings: tuple[str, ...] = ()
    n: int = 1
    speculative: bool | None = None
    logprobs: int | None = None
    terms: Terms = field(default_factory=Terms)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)

    def choice_seed(self, index: int) -> int:
        """Seed of the continuation at `index`: a prompt's own do not depend on its neighbours."""
        return (self.sampling.seed + index % self.n) % (MAX_SEED + 1)


def check(request: GenerationRequest, model: ServedModel) -> None:
    """Raises InvalidParameter: the request is over a limit, or names a token that is not there."""
    if not 1 <= request.n <= MAX_CONTINUATIONS:
        raise InvalidParameter(f"n must be in [1, {MAX_CONTINUATIONS}], got {request.n}", param="n")
    if len(request.prompts) * request.n > MAX_CONTINUATIONS:
        raise InvalidParameter(
            f"{len(request.prompts)} prompts with n={request.n} ask for more than"
            f" {MAX_CONTINUATIONS} continuations",
            param="n",
        )
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_LOGPROBS:
        raise InvalidParameter(
            f"at most {MAX_LOGPROBS} log probabilities can be asked for each token,"
            f" got {request.logprobs}",
            param="logprobs",
        )
    _check_stop_strings(request.stop_strings)
    request.sampling.check_vocabulary(model.vocab_size)
    _check_ids(request.stop_token_ids, model.vocab_size, "stop_token_ids")
    for prompt in request.prompts:
        _check_ids(prompt, model.vocab_size, "prompt")


def _check_stop_strings(stops: Sequence[str]) -> None:
    if len(stops) > MAX_STOP_STRINGS:
        raise InvalidParameter(
            f"stop may hold at most {MAX_STOP_STRINGS} strings, got {len(stops)}", param="stop"
        )
    if not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise InvalidParameter(
            f"each stop string must have 1 to {MAX_STOP_LENGTH} characters", param="stop"
        )


def _check_ids(ids: Sequence[int] | frozenset[int], vocab_size: int, param: str) -> None:
    # Two passes in C: a prompt may have a hundred thousand tokens, and other streams wait.
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        worst = min(ids) if min(ids) < 0 else max(ids)
        raise InvalidParameter(
            f"{param} names token {worst}; the vocabulary has {vocab_size} tokens", param=param
        )


def stop_conditions(
    request: GenerationRequest, prompt_tokens: int, model: ServedModel
) -> StopConditions:
    """When a continuation of a prompt of so many tokens ends.

    Raises:
        ContextTooLong: it cannot fit into the context window; says the numbers.
        InvalidParameter: the prompt is empty, or a field is out of its range.
    """
    window = model.context_length
    if prompt_tokens == 0:
        raise InvalidParameter(
            "the prompt is empty; it must hold at least one token", param="prompt"
        )
    room = window - prompt_tokens
    if room < 1:
        raise ContextTooLong(
            f"the prompt has {prompt_tokens} tokens; the context window of {window} tokens must"
            " hold the prompt and at least one more",
            param="prompt",
        )
    wanted = request.max_tokens
    if wanted is not None and wanted > room:
        raise ContextTooLong(
            f"the prompt has {prompt_tokens} tokens and max_tokens is {wanted}: together"
            f" {prompt_tokens + wanted}, beyond the context window of {window} tokens",
            param="max_tokens",
        )
    if wanted is None:
        default = request.default_max_tokens
        wanted = room if default is None else min(default, room)
    return StopConditions(wanted, request.stop_token_ids, request.ignore_eos)
