"""Settings of drafting in company of one another: whatever is chosen, plain decoding's tokens."""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager
from itertools import combinations
from typing import Any

import pytest

from slipstream.core.layer_plan import LayerPlan
from slipstream.core.params import SamplingParams
from tests.integration.client import GREEDY, Client, request
from tests.integration.processes import until
from tests.kv.rig import Drafter, drafter, row, verifier
from verifier_service.speculation import SpeculationSettings

PENALTIES = SamplingParams(
    temperature=1.0, top_k=40, top_p=0.95, repetition_penalty=1.2, presence_penalty=0.4, seed=5
)
# The second half of each repeats the first, so that there is something to guess.
PROMPTS = [tuple((7 * i + 3 * j) % 60 + 3 for i in range(120 + 17 * j)) for j in range(3)]
_TRIES = 7
PLANS = {
    "mlp": LayerPlan(skip_mlp=frozenset({1})),
    "attention": LayerPlan(skip_attention=frozenset({0})),
    "int8": LayerPlan(precision="int8", head_precision="int8"),
    # Every sublayer is loaded, and which are skipped changes under way.
    "adaptive": LayerPlan(),
}
INT8 = LayerPlan(precision="w8a8", head_precision="w8a8")
Setting = dict[str, Any]
CHOICES: dict[str, tuple[Any, ...]] = {
    "target": ("native", "int8"),
    "plan": tuple(PLANS),
    "context": ("own", "prompt", "commit"),
    "shards": (1, 2),
    "ngram": ("off", "on", "auto"),
    "early_stop": ("off", "on", "auto"),
    "placement": ("separate", "shared", "auto"),
    "length": (3, None),
    "window": (8, None),
    "guesses": ("off", "on", "auto"),
}


def _allowed(setting: Setting) -> bool:
    """What the services refuse is left out."""
    adaptive_shards = setting["plan"] == "adaptive" and setting["shards"] > 1
    return not adaptive_shards and not (setting["length"] and setting["placement"] == "shared")


def _pairs(setting: Setting) -> set[tuple[Any, ...]]:
    return set(combinations(setting.items(), 2))


def _covering(seed: int = 0) -> list[Setting]:
    """Few settings in which any two choices that go together occur together."""
    generator = random.Random(seed)

    def some(count: int) -> list[Setting]:
        drawn = ({k: generator.choice(v) for k, v in CHOICES.items()} for _ in range(count))
        return [setting for setting in drawn if _allowed(setting)]

    wanted = set().union(*map(_pairs, some(3000)))
    chosen: list[Setting] = []
    while wanted:
        chosen.append(max(some(300), key=lambda setting: len(wanted & _pairs(setting))))
        wanted -= _pairs(chosen[-1])
    return chosen


def _drafter(make_runner, setting: Setting) -> AbstractAsyncContextManager[Drafter]:
    how = {"ngram": setting["ngram"], "early_stop": setting["early_stop"]}
    plan, context = PLANS[setting["plan"]], setting["context"]
    if setting["shards"] > 1:
        return row([make_runner(plan, shard=(i, 2)) for i in range(2)], context, **how)
    return drafter(make_runner(plan), context, adaptive=setting["plan"] == "adaptive", **how)


@pytest.mark.parametrize(
    "setting", _covering(), ids=lambda setting: "-".join(map(str, setting.values()))
)
async def test_the_same_tokens(make_runner, setting) -> None:
    """Every pair of settings: six answers at once, greedy and with every penalty, are token for
    token those without speculation; drafts were made, and nothing is held afterwards."""
    target = make_runner(INT8 if setting["target"] == "int8" else None)
    asked = [(prompt, params) for prompt in PROMPTS for params in (GREEDY, PENALTIES)]
    drafting = SpeculationSettings(setting["window"], setting["length"], setting["guesses"])
    async with (
        _drafter(make_runner, setting) as pair,
        verifier(
            target, pair.address, drafting=drafting, placement=setting["placement"], pause=0.004
        ) as one,
        Client(one.address) as client,
    ):
        plain = [request(p, how, max_tokens=40, speculative=False) for p, how in asked]
        expected = [answer.tokens for answer in await client.all(plain)]
        one.wait_for_contexts(pair)
        # On a busy machine an answer may be over before its first draft is made, and a verifier
        # that sees how slow drafts are asks for none: the slower it is, the more they are worth.
        for _ in range(_TRIES):
            answers = await client.all([request(p, how, max_tokens=40) for p, how in asked])
            assert [answer.tokens for answer in answers] == expected
            if pair.engine.counters.drafted_tokens:
                break
            one.pause *= 2
        assert pair.engine.counters.drafted_tokens > 0
        assert pair.fallbacks == {}
        await until(lambda: pair.engine.num_open == 0 and not one.engine.kv.num_leases)
