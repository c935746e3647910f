"""The default model behind real processes, with its real drafter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from slipstream.core.params import SamplingParams
from slipstream.wire.proto import verifier_pb2
from tests.golden.reference import NEW_TOKENS, prompts
from tests.integration.client import GREEDY, Answer, Client, request
from tests.integration.conftest import COMMON, Start
from tests.integration.processes import Service, free_address, until

SAMPLED = SamplingParams(
    temperature=1.0, top_p=0.95, top_k=100, presence_penalty=0.3, repetition_penalty=1.1, seed=42
)
BOTH = (GREEDY, SAMPLED)
TOKENS = 32
AT_ONCE = 4

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(1200)]


STRICT = "--dtype bfloat16 --exactness strict --prefill-chunk 32"
# Options of the verifier, and of the drafter. With every setting of drafting, and with chunks so
# small that the prompts have borders.
SETTINGS = {
    # Of a fixed length, where drafts of the drafter's are counted on: on busy cores the automatic
    # one may find that they are not worth it, and look again after hundreds of steps.
    "float32": ("--dtype float32 --draft-length 4", ""),
    "defaults": (STRICT, ""),
    "int8": (f"{STRICT} --draft-length 4 --precision int8", ""),
    "own context": (f"{STRICT} --draft-length 4 --ngram off", "--kv-context own --ngram off"),
    "commit": (
        f"{STRICT} --draft-length 4 --placement separate --ngram on",
        "--kv-context commit --ngram on --early-stop on",
    ),
    "in turn": (
        f"{STRICT} --placement shared --window 12",
        "--kv-context prompt --early-stop off",
    ),
    "adaptive": (STRICT, "--layer-plan adaptive"),
}


class Pairs:
    """Verifiers, each with a drafter of its own. The next one starts while one is tested.

    Args:
        names: of the settings that will be asked for, in that order.
    """

    def __init__(self, start: Start, model: Path, names: Sequence[str]) -> None:
        self._start, self._model = start, model
        self._next = dict(pairwise(names))
        self._begun: dict[str, tuple[Service, Service]] = {}

    def begin(self, name: str) -> tuple[Service, Service]:
        if name not in self._begun:
            verifier, drafter = (words.split() for words in SETTINGS[name])
            common, address = (*COMMON, "--kv-cache-gib", "0.25"), free_address()
            self._begun[name] = (
                self._start("verifier", self._model, (*common, "--drafter", address, *verifier)),
                self._start("drafter", self._model, (*common, *drafter), address),
            )
        return self._begun[name]

    @contextmanager
    def ready(self, name: str) -> Iterator[Service]:
        services = self.begin(name)
        for service in services:
            service.wait_ready()
        if name in self._next:
            self.begin(self._next[name])
        yield services[0]
        for service in services:
            service.kill()


# Not of the module: the tests that need the reference come apart from the others, at the very end.
@pytest.fixture(scope="session")
def pairs(request: pytest.FixtureRequest, start: Start, model_dir: Path) -> Pairs:
    items = [item for item in request.session.items if item.path == Path(__file__)]
    names = dict.fromkeys(item.callspec.params["verifier"] for item in items)
    return Pairs(start, model_dir, list(names))


@pytest.fixture(scope="module")
def verifier(request: pytest.FixtureRequest, pairs: Pairs) -> Iterator[Service]:
    """Of a pair, which ends with the last test of its setting."""
    with pairs.ready(request.param) as service:
        yield service


@pytest.fixture
def fixed_length(request: pytest.FixtureRequest) -> bool:
    """Whether the setting says how many drafts there are."""
    return "--draft-length" in SETTINGS[request.node.callspec.params["verifier"]][0]


def of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("verifier", names, indirect=True, scope="module")


EVERY_STRICT = of(*(name for name in SETTINGS if name != "float32"))


async def _generate(
    service: Service, asked: list[verifier_pb2.GenerateRequest], most: int = 1000
) -> list[Answer]:
    async with Client(service.address) as client:
        await until(client.connected)
        answers = await client.all(asked, most)
    assert service.process.poll() is None
    return answers


@of("float32")
async def test_greedy_equals_transformers(verifier, model_dir, reference) -> None:
    """Greedy in float32, drafter on: all twenty prompts of up to 1,000 tokens, 128 new tokens
    each, are token for token what `transformers` generates."""
    asked = [
        request(prompt, max_tokens=NEW_TOKENS, ignore_eos=False) for prompt in prompts(model_dir)
    ]
    # Few at once: beside many others a sequence's share of rows leaves none for drafts.
    answers = await _generate(verifier, asked, AT_ONCE)
    assert tuple(tuple(a.tokens) for a in answers) == reference.tokens
    # Without the verifier's own guesses, of which few are right.
    stats = [a.stats for a in answers]
    drafted = sum(s.num_draft_tokens - s.num_guess_tokens for s in stats)
    accepted = sum(s.num_accepted_tokens - s.num_accepted_guess_tokens for s in stats)
    # The default plan of this model is nearly free; with a fault in its KV this decays.
    assert accepted > 0.5 * drafted > 20


def _plain_and_fast(
    prompt: tuple[int, ...], params: SamplingParams
) -> tuple[verifier_pb2.GenerateRequest, verifier_pb2.GenerateRequest]:
    plain, fast = (
        request(prompt, params, max_tokens=TOKENS, speculative=drafts) for drafts in (False, True)
    )
    return plain, fast


async def _alone(
    verifier: Service, prompt: tuple[int, ...], params: SamplingParams, *, guesses: bool
) -> list[int]:
    """What is answered without speculation, once a draft, or guess, was accepted and changed
    nothing."""
    plain, fast = _plain_and_fast(prompt, params)
    (expected,) = await _generate(verifier, [plain])
    assert len(expected.tokens) == TOKENS
    async with Client(verifier.address) as client:
        await client.with_drafts(fast, expected.tokens, guesses=guesses)
    return expected.tokens


@EVERY_STRICT
async def test_strict(verifier, fixed_length, model_dir) -> None:
    """Strict, with every setting of drafting and with the target at 8 bits, greedy and sampled:
    bit for bit the same tokens with speculation and without, alone and among eight others whose
    prompts and drafts come in between."""
    prompt = prompts(model_dir)[8][:150]
    expected = [await _alone(verifier, prompt, params, guesses=not fixed_length) for params in BOTH]
    others = [
        request(prompts(model_dir)[i][: 20 + 9 * i], SAMPLED, max_tokens=TOKENS)
        for i in (1, 2, 3, 5, 6, 7, 9)
    ]
    plain, fast = zip(*(_plain_and_fast(prompt, params) for params in BOTH), strict=True)
    among = await _generate(verifier, [*others[:3], *fast, *others[3:]])
    beside = await _generate(verifier, [*others[:5], *plain, *others[5:]])
    assert [a.tokens for a in among[3:5]] == [b.tokens for b in beside[5:7]] == expected
    # The others, too, are the same in either company.
    del among[3:5], beside[5:7]
    assert [a.tokens for a in among] == [b.tokens for b in beside]


@EVERY_STRICT
async def test_nothing_is_left(verifier) -> None:
    """After all that neither process holds a sequence or a block."""
    async with Client(verifier.address) as client:

        async def nothing() -> bool:
            status = await client.status()
            return status.requests_running == status.kv_blocks_used == 0

        # The drafter gives its lease back when it hears of the end; by itself it lasts 10 s.
        await until(nothing, 9)
        status = await client.status()
        assert status.accepted_tokens <= status.draft_tokens
