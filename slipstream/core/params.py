"""What a request may ask of the sampling rule and of the end of a generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from slipstream.core.errors import InvalidParameter

MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 256
_NO_BIAS: Mapping[int, float] = MappingProxyType({})


def _number(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    # NaN fails every comparison; an integer too large for a float compares all the same.
    in_range = low < value <= high if open_low else low <= value <= high
    if not in_range:
        bracket = "(" if open_low else "["
        raise InvalidParameter(
            f"{name} must be a number in {bracket}{low:g}, {high:g}], got {value}", param=name
        )


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Everything besides the logits that decides a token. Immutable and validated.

    Attributes:
        temperature: 0 (greedy) to 100.
        top_p: nucleus mass in (0, 1]; 1 is off.
        top_k: most tokens to keep; 0 is off.
        min_p: least probability relative to the most likely token, in [0, 1]; 0 is off.
        presence_penalty, frequency_penalty: -2 to 2, over generated tokens (OpenAI).
        repetition_penalty: above 0, over prompt and generated tokens (CTRL, arXiv 1909.05858).
        logit_bias: token id to a number in [-100, 100], added first.
        seed: key of the noise, 0 to 2**63 - 1.

    Raises:
        InvalidParameter: names the field and what it may be.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)
    seed: int = 0

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        if self.top_k < 0:
            raise InvalidParameter(f"top_k must be 0 or more, got {self.top_k}", param="top_k")
        if not 0 <= self.seed <= MAX_SEED:
            raise InvalidParameter(
                f"seed must be in [0, {MAX_SEED}], got {self.seed}", param="seed"
            )
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidParameter(
                f"logit_bias may name at most {MAX_LOGIT_BIAS} tokens, got {len(self.logit_bias)}",
                param="logit_bias",
            )
        for token, bias in self.logit_bias.items():
            _number("logit_bias", bias, -100.0, 100.0)
            if token < 0:
                raise InvalidParameter(
                    f"logit_bias names token {token}; ids start at 0", param="logit_bias"
                )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether the token depends on which tokens came before, besides the logits."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )

    @property
    def plain_argmax(self) -> bool:
        """Whether the rule is nothing but the argmax of the raw logits."""
        return self.greedy and not self.has_penalties and not self.logit_bias

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises InvalidParameter where a token id is not in the vocabulary."""
        for token in self.logit_bias:
            if token >= vocab_size:
                raise InvalidParameter(
                    f"logit_bias names token {token}; the vocabulary has {vocab_size} tokens",
                    param="logit_bias",
                )


@dataclass(frozen=True, slots=True)
class StopConditions:
    """When a generation ends.

    Attributes:
        max_tokens: most tokens to generate, at least 1.
        stop_token_ids: tokens that end it, beside the model's own end-of-sequence tokens.
        ignore_eos: whether to generate through the model's end-of-sequence tokens.
    """

    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidParameter(
                f"max_tokens must be at least 1, got {self.max_tokens}", param="max_tokens"
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidParameter(
                f"stop_token_ids may hold at most {MAX_STOP_TOKEN_IDS} ids", param="stop_token_ids"
            )
        if any(token < 0 for token in self.stop_token_ids):
            raise InvalidParameter("stop_token_ids must be 0 or more", param="stop_token_ids")
