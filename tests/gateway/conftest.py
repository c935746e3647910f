"""A tiny model folder, scripted verifiers, and a real gateway on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gateway import tokenizer as gateway_tokenizer
from gateway.server import serving
from gateway.settings import Settings
from slipstream.store import MemoryStore, Store
from slipstream.wire.fakes import FakeVerifier
from slipstream.wire.proto import verifier_pb2
from tests.telemetry.scraped import values_of

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello, world! Stop here and there.",
    "user assistant system answer question 0123456789 naïve café 日本語 😀 emoji",
] * 4


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think> ü", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return tokenizer


def byte_fallback_tokenizer(strip: bool = True) -> Tokenizer:
    """As SentencePiece models are converted: Llama 2 strips the leading space, Gemma does not."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "▁a", "▁the", "▁▁", "é", "日", "<0x", "x▁y"]
    tokenizer = Tokenizer(
        models.BPE({piece: place for place, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    pieces = ["<unk>", "<s>", "▁", "a", "b", "▁a", "▁the", "▁▁", "é", "<0x41>"]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


@pytest.fixture(scope="session")
def hf_tokenizers() -> dict[str, Tokenizer]:
    return {
        "byte-level": byte_level_tokenizer(),
        "llama": byte_fallback_tokenizer(),
        "gemma": byte_fallback_tokenizer(strip=False),
        "metaspace": metaspace_tokenizer(),
    }


@pytest.fixture(scope="session")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory, hf_tokenizers: dict[str, Tokenizer]
) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    folder.mkdir()
    hf_tokenizers["byte-level"].save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> gateway_tokenizer.Tokenizer:
    return gateway_tokenizer.Tokenizer(model_folder)


@pytest.fixture(scope="session")
def ids(hf_tokenizers: dict[str, Tokenizer]) -> Callable[[str], list[int]]:
    """Token ids of a text, without special tokens."""
    hf = hf_tokenizers["byte-level"]
    return lambda text: hf.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="session")
def decode(hf_tokenizers: dict[str, Tokenizer]) -> Callable[[list[int]], str]:
    """Text of token ids, special tokens left out."""
    return hf_tokenizers["byte-level"].decode


EOS = 2
# uvicorn looks every tenth of a second whether it shall stop, and waits for another one when it
# does. There are hundreds of gateways here, and what they prove needs none of these waits.
_POLLS = 10


class _Hurried:
    """asyncio as uvicorn's server sees it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / _POLLS)


@pytest.fixture(scope="session", autouse=True)
def _quick_stops() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", _Hurried())
        yield


@dataclass
class Rig:
    """One gateway with its fake verifiers; mostly there is one."""

    fakes: list[FakeVerifier]
    http: httpx.AsyncClient
    url: str
    grpc_address: str
    running: Any

    @property
    def fake(self) -> FakeVerifier:
        return self.fakes[0]

    async def until_ready(self) -> None:
        async with asyncio.timeout(20):
            while (await self.http.get("/ready")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until_states(self, **wanted: int) -> None:
        """Until so many verifiers are in each of these states, and no others are known."""
        async with asyncio.timeout(20):
            while True:
                body = (await self.http.get("/ready")).json()
                if Counter(one["state"].replace(" ", "_") for one in body["verifiers"]) == wanted:
                    return
                await asyncio.sleep(0.02)

    async def tell(self) -> None:
        """Lets the gateway hear from all verifiers now, however long that takes."""
        pool = self.running.kept.runs.keeper._service.pool
        await asyncio.gather(*(link.beat(20) for link in pool._links.values()))

    async def until_metrics(self, wanted: Mapping[str, float]) -> None:
        """Until the metrics have these values: what is counted as a request ends may come after
        its answer."""
        async with asyncio.timeout(20):
            while True:
                values = values_of((await self.http.get("/metrics")).text)
                if wanted.items() <= values.items():
                    return
                await asyncio.sleep(0.02)

    async def until_taken(self, ask: Callable[[], Awaitable[httpx.Response]]) -> None:
        """Until there is room for a request: one that was cut gives its place back in its time."""
        async with asyncio.timeout(20):
            while (await ask()).status_code == 429:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def chat(self, text: str = "hi", **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        body = {"model": "tiny-chat", "messages": messages, **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def complete(self, prompt: Any = "hi", **fields: Any) -> httpx.Response:
        body = {"model": "tiny-chat", "prompt": prompt, **fields}
        return await self.http.post("/v1/completions", json=body)


async def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually


def _client(url: str) -> httpx.AsyncClient:
    # Nothing is encrypted here, and reading the machine's certificates takes longer than all else.
    return httpx.AsyncClient(base_url=url, timeout=20, trust_env=False, verify=False)


@pytest.fixture
def make_rig(model_folder: Path) -> Callable[..., contextlib.AbstractAsyncContextManager[Rig]]:
    """A context manager that starts verifiers with these tokens, and a gateway before them.

    `fakes` says of each verifier what is its own of GetModel's answer, and its "behaviour".
    """

    @contextlib.asynccontextmanager
    async def rig(
        tokens: Any = (5, 6, 7),
        context_length: int = 256,
        store: Store | None = None,
        fakes: Sequence[Mapping[str, Any]] = ({},),
        **settings: Any,
    ) -> AsyncIterator[Rig]:
        async with contextlib.AsyncExitStack() as stack:
            started = []
            for own in fakes:
                model = verifier_pb2.GetModelResponse(
                    model_id="fake",
                    fingerprint="f",
                    context_length=context_length,
                    vocab_size=512,
                    eos_token_ids=[EOS],
                )
                told = {key: value for key, value in own.items() if key != "behaviour"}
                model.MergeFrom(verifier_pb2.GetModelResponse(**told))
                fake = FakeVerifier(own.get("behaviour", tokens), model)
                started.append(await stack.enter_async_context(fake))
            fields = {
                "model": model_folder,
                "verifier": ",".join(fake.address for fake in started),
                "http": "127.0.0.1:0",
                "grpc": "127.0.0.1:0",
                "stop_grace": 0.2,
                # Stores here say themselves when they fail: a busy machine's delays are no failure.
                "store_timeout": 20.0,
                # Tests that lose a verifier for good need not wait for it.
                "failover_timeout": 0.5,
            }
            chosen = Settings(**(fields | settings))
            async with serving(chosen, store or MemoryStore()) as running:
                url = f"http://127.0.0.1:{running.http_port}"
                async with _client(url) as http:
                    address = f"127.0.0.1:{running.grpc_port}"
                    made = Rig(started, http, url, address, running)
                    await made.until_ready()
                    yield made
            # What the gateway cancelled when it stopped reaches the fakes in its own time.
            for _ in range(200):
                if not any(fake.running for fake in started):
                    break
                await asyncio.sleep(0.005)

    return rig


@pytest.fixture
async def rig(make_rig: Callable[..., Any]) -> AsyncIterator[Rig]:
    async with make_rig() as made:
        yield made
