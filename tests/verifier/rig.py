"""The verifier's engine driven by hand: step by step, on the caller's thread."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slipstream.core.draft import Command, Proposal, Refusal
from slipstream.core.errors import SlipstreamError
from slipstream.core.params import SamplingParams, StopConditions
from slipstream.core.prefix import PrefixChain
from slipstream.engine.runner import ModelRunner
from verifier_service.admission import Bounds
from verifier_service.engine import VerifierEngine
from verifier_service.generation import (
    CommittedToken,
    Finish,
    GenerationRequest,
    Progress,
    SpeculationCounts,
)
from verifier_service.kv_holder import KvHolder
from verifier_service.layouts import Drafter
from verifier_service.placement import Placement
from verifier_service.plan import Limits
from verifier_service.speculation import Speculation, SpeculationSettings

VOCAB = 96
EOS = 2
CONTEXT = 256
GREEDY = SamplingParams(temperature=0.0)
HERE = Drafter("here", frozenset({0, 1}))
ELSEWHERE = Drafter("elsewhere", frozenset())


def write_checkpoint(
    folder: Path, *, seed: int = 1, context: int = CONTEXT, layers: int = 2
) -> Path:
    """A random Llama in float32 with few tokens, so that ends of sequence come up by chance.

    Its weights are spread wider than usual, so that its choices are not near-ties.
    """
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=EOS,
        initializer_range=0.4,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@dataclass(slots=True)
class Outcome:
    """What a request's listener heard.

    Attributes:
        steps: the tokens of each message, in order.
        cached: tokens of the prompt that it did not compute.
    """

    prompt: tuple[int, ...]
    steps: list[tuple[CommittedToken, ...]] = field(default_factory=list)
    finish: Finish | None = None
    error: SlipstreamError | None = None
    counts: SpeculationCounts | None = None
    cached: int = 0
    cancel: Callable[[], None] = lambda: None

    @property
    def tokens(self) -> list[int]:
        return [token.id for step in self.steps for token in step]

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.error is not None

    def hear(self, progress: Progress) -> None:
        assert not self.ended, "nothing may come after the last word"
        if progress.tokens:
            self.steps.append(progress.tokens)
        self.finish, self.error = progress.finish, progress.error
        self.counts = progress.counts
        self.cached = progress.cached_prompt_tokens


def ticking() -> Callable[[], float]:
    """A clock that each look at it puts on by half a millisecond: what depends on how long steps
    take is the same however busy the machine is."""
    ticks = itertools.count(200_000)
    return lambda: next(ticks) / 2000


class Rig:
    """An engine without a thread, and everything that it sent to its drafter.

    Args:
        clock: seconds; None: one that passes with the looks at it.

    Attributes:
        commands: (connection, command) in the order sent.
        truth: whole right sequence of a generation by its number, where a script needs one.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        limits: Limits | None = None,
        max_running: int = 128,
        bounds: Bounds | None = None,
        window: int = 8,
        length: int | None = 8,
        placement: str = "separate",
        ngram: str = "off",
        clock: Callable[[], float] | None = None,
        kv: KvHolder | None = None,
        probe: dict[int, float] | None = None,
    ) -> None:
        assert runner.pool.num_used == 0, "an earlier test left blocks behind"
        self.runner = runner
        clock = clock or ticking()
        self.commands: list[tuple[int, Command]] = []
        speculation = Speculation(
            lambda connection, batch: self.commands.extend((connection, c) for c in batch),
            SpeculationSettings(window=window, length=length, ngram=ngram),
            probe or {1: 0.001, 32: 0.002},
            Placement(placement, HERE, lambda cores: None),
            clock=clock,
        )
        self.engine = VerifierEngine(
            runner,
            speculation,
            limits=limits or Limits(strict=True),
            max_running=max_running,
            # Nobody has waited for too long, however many steps a test takes.
            bounds=bounds or Bounds(seconds=math.inf),
            clock=clock,
            kv=kv,
        )

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams = GREEDY,
        *,
        max_tokens: int = 16,
        stop: Sequence[int] = (),
        ignore_eos: bool = False,
        speculative: bool = True,
        logprobs: int | None = None,
        listener: Callable[[Progress], None] | None = None,
        **more: Any,
    ) -> Outcome:
        outcome = Outcome(tuple(prompt))
        request = GenerationRequest(
            request_id="test",
            prompt=tuple(prompt),
            params=params,
            stop=StopConditions(max_tokens, frozenset(stop), ignore_eos),
            speculative=speculative,
            logprobs=logprobs,
            listener=listener or outcome.hear,
            **more,
        )
        outcome.cancel = self.engine.submit(request)
        return outcome

    def step(self) -> bool:
        """One step, after which every sequence must be in a lawful state.

        Waiting for drafts is work, too.
        """
        worked = self.engine.step()
        if self.engine.patience:
            time.sleep(min(self.engine.patience, 0.0005))
            worked = True
        self.check()
        return worked

    def check(self) -> None:
        """The invariants that hold between any two steps."""
        engine, pool = self.engine, self.runner.pool
        held: set[int] = set()
        for generation in engine.scheduler.running:
            sequence = generation.sequence
            assert sequence.table is not None
            held.update(sequence.table.blocks)
            assert len(sequence.chain) == len(sequence.tokens) <= generation.max_length
            assert not generation.finish
            assert 0 <= sequence.computed <= min(len(sequence) - 1, sequence.table.capacity)
        for generation in engine.scheduler.waiting:
            sequence = generation.sequence
            assert sequence.table is None
            assert sequence.computed == 0
        assert len(held) == pool.num_used
        assert engine.num_running + engine.num_waiting == len(list(engine.scheduler))
        assert len(engine._by_number) == engine.num_running + engine.num_waiting

    def finish(self, before_step: Callable[[], None] = lambda: None, most: int = 2000) -> None:
        """Steps until nothing is left to do; then nothing may be held."""
        for _ in range(most):
            before_step()
            if not self.step():
                break
        else:
            raise AssertionError(f"still busy after {most} steps")
        assert self.engine.num_running == self.engine.num_waiting == 0
        assert self.runner.pool.num_used == 0
        assert not self.engine.admission.backlog, "requests that it takes for waiting"

    def propose(self, *proposals: Proposal, drafter: int = 1) -> None:
        self.engine.deliver(drafter, list(proposals), [])

    def refuse(self, *refusals: Refusal, drafter: int = 1) -> None:
        self.engine.deliver(drafter, [], list(refusals))

    def chain(self, tokens: Sequence[int]) -> PrefixChain:
        return PrefixChain(self.runner.loaded.fingerprint, tokens)


def plain(
    runner: ModelRunner,
    prompt: Sequence[int],
    params: SamplingParams,
    limits: Limits | None = None,
    **how,
) -> Outcome:
    """The same request without speculation, alone."""
    rig = Rig(runner, limits=limits)
    outcome = rig.submit(prompt, params, speculative=False, **how)
    rig.finish()
    return outcome
