"""One sequence: the single mutable object that an engine keeps for each generation."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from slipstream.core.params import SamplingParams
from slipstream.core.prefix import PrefixChain
from slipstream.core.sampling import Logits, TokenCounts, sample
from slipstream.engine.kv_pool import BlockTable


class Sequence:
    """Token history, its prefix names, and how much of it is in the KV pool.

    Only the engine that made it changes it. Invariant: computed <= len(tokens).

    Attributes:
        tokens: prompt and what followed.
        num_prompt: how many of them are the prompt.
        computed: positions whose keys and values are in the pool.
        table: room in the pool, None until there is some.
    """

    def __init__(
        self,
        tokens: Seq[int],
        num_prompt: int,
        params: SamplingParams,
        salt: str,
    ) -> None:
        self.tokens = list(tokens)
        self.num_prompt = num_prompt
        self.params = params
        self.chain = PrefixChain(salt, tokens)
        self.computed = 0
        self.table: BlockTable | None = None
        self._counts = TokenCounts(self.tokens[:num_prompt], self.tokens[num_prompt:])

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def todo(self) -> int:
        """Positions that a forward pass has yet to see."""
        return len(self.tokens) - self.computed

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self.chain.extend((token,))
        self._counts.add(token)

    def rollback(self, length: int) -> None:
        """Forgets the tokens from `length` on. Their keys and values are overwritten later."""
        assert self.num_prompt <= length <= len(self.tokens)
        for token in self.tokens[length:]:
            self._counts.remove(token)
        del self.tokens[length:]
        self.chain.truncate(length)
        self.computed = min(self.computed, length)

    def draw(self, logits: Logits) -> int:
        """The token that follows, from float32 logits [vocab] of the last position."""
        return sample(logits, self.params, self._counts, len(self.tokens))
