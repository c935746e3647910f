"""The drafter's engine driven by hand, and a link to a verifier that delays, loses and reorders."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drafter_service.adaptive import Adaptive, AdaptiveStage
from drafter_service.confidence import Stopping, make_early_stop
from drafter_service.draft import Draft, Key
from drafter_service.engine import DrafterEngine
from drafter_service.guesses import Assistance, make_assist
from slipstream.core.draft import Close, Command, Commit, Open, Proposal, Refusal
from slipstream.core.params import SamplingParams
from slipstream.core.prefix import PrefixChain
from slipstream.engine.runner import ModelRunner

Message = tuple[int, list[Proposal], list[Refusal]]


class DrafterRig:
    """An engine without a thread.

    Attributes:
        sent: what it sent and nobody took yet: (connection, proposals, refusals).
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        max_sequences: int = 128,
        ngram: Assistance = "off",
        early_stop: Stopping = "off",
        adaptive: Adaptive | None = None,
    ) -> None:
        assert runner.pool.num_used == 0, "an earlier test left blocks behind"
        self.runner = runner
        self.sent: list[Message] = []
        self.widest: dict[Key, int] = {}
        self.assist = make_assist(ngram)
        self.early_stop = make_early_stop(early_stop)
        self.engine = DrafterEngine(
            runner,
            lambda *message: self.sent.append(message),
            max_sequences=max_sequences,
            assist=self.assist,
            early_stop=self.early_stop,
            stage=AdaptiveStage(runner) if adaptive else None,
            parts=[adaptive] if adaptive else [],
        )

    def obey(self, *commands: Command, connection: int = 1) -> None:
        self.engine.obey(connection, list(commands))

    def step(self) -> bool:
        worked = self.engine.step()
        self.check()
        return worked

    def check(self) -> None:
        """The invariants that hold between any two steps."""
        blocks: set[int] = set()
        for draft in self.engine._drafts.values():
            sequence = draft.sequence
            assert draft.committed <= len(sequence) <= max(draft.committed, draft.max_length - 1)
            # Drafts made in a window that is narrowed afterwards stay.
            widest = self.widest[draft.key] = max(draft.window, self.widest.get(draft.key, 0))
            assert len(sequence) - draft.committed <= widest
            assert len(sequence.chain) == len(sequence)
            assert sequence.computed < len(sequence)
            if sequence.table:
                assert sequence.computed <= sequence.table.capacity
                blocks.update(sequence.table.blocks)
        assert len(blocks) == self.runner.pool.num_used

    def run(self, most: int = 500) -> None:
        """Steps until it has run ahead as far as it may."""
        for _ in range(most):
            if not self.step():
                return
        raise AssertionError(f"still busy after {most} steps")

    def draft(self, sequence_id: int = 1, connection: int = 1) -> Draft:
        return self.engine._drafts[Key(connection, sequence_id)]

    def ahead(self, sequence_id: int = 1, connection: int = 1) -> list[int]:
        """The drafts beyond the last commit."""
        draft = self.draft(sequence_id, connection)
        return draft.sequence.tokens[draft.committed :]

    def refusals(self) -> list[Refusal]:
        return [refusal for _, _, refused in self.sent for refusal in refused]

    def chain(self, tokens: Sequence[int]) -> PrefixChain:
        return PrefixChain(self.runner.loaded.fingerprint, tokens)

    def commit(self, history: Sequence[int], *tokens: int, sequence_id: int = 1) -> Commit:
        return Commit(sequence_id, self.chain(history).at(len(history)), tokens)

    def kv(self, sequence_id: int = 1) -> torch.Tensor:
        """Keys and values of the computed positions: [layers, 2, computed, heads, dim]."""
        sequence = self.draft(sequence_id).sequence
        assert sequence.table is not None
        slots = sequence.table.slots[: sequence.computed]
        pool = self.runner.pool
        pairs = zip(pool.keys, pool.values, strict=True)
        return torch.stack([torch.stack((k[slots], v[slots])) for k, v in pairs])

    def close_all(self) -> None:
        for key in list(self.engine._drafts):
            self.obey(Close(key.sequence_id), connection=key.connection)
        self.run()
        assert self.runner.pool.num_used == 0
        # What is opened next is computed, not found.
        self.runner.pool.forget()


def opening(
    tokens: Sequence[int],
    params: SamplingParams,
    *,
    sequence_id: int = 1,
    num_prompt: int | None = None,
    window: int = 8,
    max_length: int = 100,
) -> Open:
    prompt = len(tokens) if num_prompt is None else num_prompt
    return Open(sequence_id, tuple(tokens), prompt, params, window, max_length)
