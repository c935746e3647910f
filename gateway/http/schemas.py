"""Request bodies of the OpenAI API, as far as they are served; anything else is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway.chat import Role, known_role, turn
from gateway.request import MAX_CONTINUATIONS, MAX_STOP_STRINGS
from slipstream.core.params import MAX_LOGIT_BIAS, MAX_SEED, MAX_STOP_TOKEN_IDS

MAX_MESSAGES = 4096
MAX_PARTS = 1024


class _FirstError(FailFast):
    """Stops at a list's first wrong entry: a message for each of a million takes seconds."""

    # Python 3.11 asks for it inside unions.
    __hash__ = object.__hash__


def _at_most(most: int, what: str) -> BeforeValidator:
    """Refuses a longer list or object before each of its entries is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise ValueError(f"may hold at most {most} {what}, got {len(value)}")
        return value

    return BeforeValidator(check)


class _Strict(BaseModel):
    # Strict: "5" is not a number and true is not 1.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


def _drop_nulls(message: Any) -> Any:
    """Clients send answers back as they got them, with fields that are null or empty."""
    if not isinstance(message, dict):
        return message
    return {
        key: value for key, value in message.items() if key == "content" or value not in (None, [])
    }


class Message(_Strict):
    """One turn of a chat. `content` is text, or parts of text that are joined by line breaks.

    An assistant's may be null, which is no text.
    """

    role: Annotated[Role, BeforeValidator(known_role)]
    content: Annotated[
        str | Annotated[list[TextPart], _FirstError()] | None, _at_most(MAX_PARTS, "parts")
    ]
    name: str | None = None

    @field_validator("content")
    @classmethod
    def _null_only_of_assistant(
        cls, content: str | list[TextPart] | None, info: ValidationInfo
    ) -> str | list[TextPart] | None:
        if content is None and info.data.get("role") != "assistant":
            raise ValueError("may be null for the assistant only")
        return content

    def for_template(self) -> dict[str, str]:
        content = self.content or ""
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        return turn(self.role, text, self.name)


def _within_seeds(value: Any) -> Any:
    # JSON integers beyond 64 bits arrive as floats, whose error would speak of fractions.
    if isinstance(value, float) and not 0 <= value <= MAX_SEED:
        raise ValueError(f"must be an integer in [0, {MAX_SEED}]")
    return value


def _few_prompts(prompt: Any) -> Any:
    """Of texts or lists; one list of token ids is as long as the context window takes."""
    several = isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
    if several and len(prompt) > MAX_CONTINUATIONS:
        raise ValueError(f"may hold at most {MAX_CONTINUATIONS} prompts, got {len(prompt)}")
    return prompt


class StreamOptions(_Strict):
    include_usage: bool | None = None


class _Common(_Strict):
    """What both endpoints take. A null means the default."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, description="most tokens to keep; 0 or -1 is off")
    min_p: float | None = None
    seed: Annotated[int | None, BeforeValidator(_within_seeds)] = Field(
        None, description="choice i of a prompt is drawn with seed + i"
    )
    stop: Annotated[str | list[str] | None, _at_most(MAX_STOP_STRINGS, "strings")] = None
    stop_token_ids: Annotated[list[int] | None, _at_most(MAX_STOP_TOKEN_IDS, "ids")] = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[str, float] | None, _at_most(MAX_LOGIT_BIAS, "tokens")] = Field(
        None, description="token id to bias"
    )
    n: int | None = Field(None, description="choices; each has a seed of its own: seed + i")
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: int | None = Field(None, description="lower ones go first; 0 is usual")
    timeout: float | None = Field(
        None, description="seconds within which the whole answer must have come"
    )
    cache_salt: str | None = Field(
        None, min_length=1, description="prompts are cached for requests of the same salt only"
    )
    speculative: bool | None = Field(
        None, description="false decodes plainly; the tokens are the same either way"
    )

    background: bool | None = Field(
        None, description="true: answered at once; fetch the result at /v1/generations/ID"
    )
    session_id: str | None = Field(
        None,
        min_length=1,
        description="the conversation that this continues; send only what is new",
    )
    session_turn: int | None = Field(
        None,
        ge=0,
        lt=2**32,
        description="how many turns the session must have; 0 begins it where there is none",
    )

    @model_validator(mode="after")
    def _nobody_waits_for_a_stream(self) -> Self:
        if self.background and self.stream:
            raise ValueError("background and stream cannot both be true")
        return self

    @model_validator(mode="after")
    def _options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self


class ChatRequest(_Common):
    """POST /v1/chat/completions."""

    messages: Annotated[
        list[Annotated[Message, BeforeValidator(_drop_nulls)]],
        _FirstError(),
        _at_most(MAX_MESSAGES, "messages"),
    ] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionRequest(_Common):
    """POST /v1/completions."""

    prompt: Annotated[
        str
        | Annotated[list[str], _FirstError()]
        | Annotated[list[int], _FirstError()]
        | Annotated[list[Annotated[list[int], _FirstError()]], _FirstError()],
        # The first that fits: no two fit the same, and each would be tried on every token.
        Field(union_mode="left_to_right"),
        BeforeValidator(_few_prompts),
    ]
    logprobs: int | None = None
