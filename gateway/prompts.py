"""What clients write, as token ids: refused by its length first, tokenized beside the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gateway.tenant_threads import TenantThreads
from gateway.terms import Terms
from gateway.tokenizer import Tokenizer
from slipstream.core.errors import ContextTooLong, DeadlineExceeded

# Longer texts are tokenized in a thread, so that other streams go on.
_INLINE_CHARACTERS = 1024
# They compete with everything else on the machine for its cores.
_THREADS = 2
# What a turn costs a chat template, in characters.
_TURN = 32
_Ids = tuple[int, ...]


class Prompts:
    """One for the process.

    Args:
        tokenizer: of the served model.
        context_length: tells its window, in tokens, or raises Unavailable.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: Callable[[], int]) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._threads = TenantThreads(_THREADS, "tokenizer")

    async def of_text(self, text: str, terms: Terms) -> _Ids:
        """Token ids of `text`, with the model's own begin tokens.

        Raises:
            ContextTooLong: it cannot fit, which is told from its length.
            DeadlineExceeded: its time was over before its turn came.
            Unavailable: there is no verifier.
        """
        window = self._context_length()
        # Here, not in a thread: what is refused waits for nobody.
        self._check(text, window)
        encode = partial(self._tokenizer.encode, text, add_special_tokens=True)
        return await self._run(encode, len(text), terms)

    async def of_chat(self, messages: Sequence[Mapping[str, str]], terms: Terms) -> _Ids:
        """Token ids of a chat that waits for the assistant. Its template writes special tokens.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses the messages.
            ContextTooLong, DeadlineExceeded, Unavailable: as for a text.
        """
        characters = sum(len(message["content"]) + _TURN for message in messages)
        chat = partial(self._chat, messages, self._context_length())
        return await self._run(chat, characters, terms)

    def _chat(self, messages: Sequence[Mapping[str, str]], window: int) -> _Ids:
        # Templates cut what they are given: only what they wrote can be judged by its length.
        text = self._tokenizer.render(messages)
        self._check(text, window)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _check(self, text: str, window: int) -> None:
        bound = self._tokenizer.length_bound
        # Most texts are known to be short enough without another look.
        if bound is None or len(text) < window:
            return
        least = bound.least_tokens(text)
        if least >= window:
            raise ContextTooLong(
                f"the prompt has {len(text)} characters, which are at least {least} tokens; the"
                f" context window of {window} tokens must hold the prompt and at least one more",
                param="prompt",
            )

    async def _run(self, work: Callable[[], _Ids], characters: int, terms: Terms) -> _Ids:
        if characters <= _INLINE_CHARACTERS:
            return work()
        try:
            async with asyncio.timeout(terms.remaining()):
                return await self._threads.run(work, terms.tenant)
        except TimeoutError as failure:
            raise DeadlineExceeded("the request's time is over", param="timeout") from failure
