"""Bodies of the OpenAI API as turns of a session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.http.schemas import ChatRequest, CompletionRequest, Message
from slipstream.core.errors import InvalidParameter
from slipstream.wire.proto import gateway_pb2

_MOST_ID = 2**32 - 1


class _Turn:
    def __init__(self, body: ChatRequest | CompletionRequest) -> None:
        self.session_id = body.session_id or ""
        self.session_turn = body.session_turn
        self._n = body.n

    def check(self) -> None:
        if self._n not in (None, 1):
            raise InvalidParameter(
                f"a session's turn has one answer: n must be 1, got {self._n}", param="n"
            )


class ChatTurn(_Turn):
    """A body of /v1/chat/completions; its messages are what is new."""

    def __init__(self, body: ChatRequest) -> None:
        super().__init__(body)
        self._body = body

    def turn(self) -> gateway_pb2.SessionTurn:
        self.check()
        chat = gateway_pb2.Chat()
        for place, message in enumerate(self._body.messages):
            if message.name is not None:
                param = f"messages.{place}.name"
                raise InvalidParameter(f"{param}: a session keeps no names", param=param)
            chat.messages.add(role=message.role, content=message.for_template()["content"])
        return gateway_pb2.SessionTurn(chat=chat)

    def whole(self, turns: Iterable[gateway_pb2.SessionTurn]) -> ChatRequest:
        messages: list[Message] = []
        for turn in turns:
            messages += [_message(each.role, each.content) for each in turn.chat.messages]
            messages.append(_message("assistant", turn.output_text))
        return self._body.model_copy(update={"messages": [*messages, *self._body.messages]})


def _message(role: str, content: str) -> Message:
    # It has been checked once.
    return Message.model_construct(role=role, content=content, name=None)


class CompletionTurn(_Turn):
    """A body of /v1/completions; its one prompt is what is new."""

    def __init__(self, body: CompletionRequest) -> None:
        super().__init__(body)
        self._body = body

    def turn(self) -> gateway_pb2.SessionTurn:
        self.check()
        prompt = self._prompt()
        if isinstance(prompt, str):
            return gateway_pb2.SessionTurn(text=prompt)
        if prompt and not 0 <= min(prompt) <= max(prompt) <= _MOST_ID:
            worst = min(prompt) if min(prompt) < 0 else max(prompt)
            raise InvalidParameter(f"prompt names token {worst}; there is none", param="prompt")
        return gateway_pb2.SessionTurn(token_ids=gateway_pb2.TokenIds(ids=prompt))

    def _prompt(self) -> str | Sequence[int]:
        prompt: Any = self._body.prompt
        if isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int)):
            if len(prompt) != 1:
                raise InvalidParameter(
                    f"a session's turn has one prompt, got {len(prompt)}", param="prompt"
                )
            prompt = prompt[0]
        return prompt  # type: ignore[no-any-return]

    def whole(self, turns: Iterable[gateway_pb2.SessionTurn]) -> CompletionRequest:
        new = self._prompt()
        prompt: str | list[int]
        if isinstance(new, str):
            prompt = "".join([*(turn.text + turn.output_text for turn in turns), new])
        else:
            prompt = []
            for turn in turns:
                prompt += [*turn.token_ids.ids, *turn.output_token_ids]
            prompt += new
        return self._body.model_copy(update={"prompt": prompt})
