"""Long prompts: beside the event loop, in a line of their tenant's, and not at all if too long."""

from __future__ import annotations

import asyncio
import gc
import time
from threading import Event

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from gateway.length_bound import length_bound
from gateway.prompts import Prompts
from gateway.tenant_threads import TenantThreads
from gateway.terms import Terms
from gateway.tokenizer import Tokenizer as GatewayTokenizer
from slipstream.core.errors import ContextTooLong, DeadlineExceeded
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel
from tests.gateway.conftest import byte_fallback_tokenizer, byte_level_tokenizer

NOBODY = Terms()


def composing() -> Tokenizer:
    tokenizer = byte_level_tokenizer()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def stripping() -> Tokenizer:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken("<end>", rstrip=True), AddedToken("<mask>", lstrip=True)])
    return tokenizer


def forgetful() -> Tokenizer:
    """Without pieces for two bytes, as the default model's is without some."""
    vocabulary = byte_level_tokenizer().get_vocab(with_added_tokens=False)
    kept = [piece for piece in vocabulary if len(piece) == 1 and piece not in "xĄ"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(kept)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def spaced() -> Tokenizer:
    """As Llama 2 has it."""
    tokenizer = byte_fallback_tokenizer()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


KINDS = {
    "byte-level": byte_level_tokenizer,
    "NFC": composing,
    "stripping": stripping,
    "forgetful": forgetful,
    "byte fallback": byte_fallback_tokenizer,
    "spaced": spaced,
}
PARTS = [
    " ", "\n", "\u3000", "\x1c", "x", "\x04", "the", "<end>", "<mask>", "<|im_end|>",
    "<think> ü", "é", "日", "😀", "\u1f82", "\u03b1\u0313\u0300\u0345", "a\u0301",
    "\u1100\u1161\u11a8", "Hello, world! ",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_has_fewer_tokens_than_its_length_says(kind):
    """Whatever is dropped, stripped, composed or one token: the bound never tells more tokens."""
    tokenizer = KINDS[kind]()
    bound = length_bound(tokenizer)
    assert bound is not None

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(PARTS), st.integers(1, 300)), max_size=6))
    def holds(parts):
        text = "".join(part * times for part, times in parts)
        assert bound.least_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))

    holds()
    # And it is of use: no text is as long as one has to be for its bound to mean little.
    assert bound.least_tokens("y" * 1000 * bound.longest) == 1000


def test_no_bound_where_tokens_can_swallow_any_length(hf_tokenizers):
    """Unknown words, collapsed spaces, dropped matches: then nothing is said by the length."""
    assert length_bound(hf_tokenizers["metaspace"]) is None
    assert length_bound(Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))) is None
    for normalizer in (normalizers.Strip(), normalizers.Replace("  ", " ")):
        tokenizer = byte_level_tokenizer()
        tokenizer.normalizer = normalizer
        assert length_bound(tokenizer) is None
    tokenizer = byte_level_tokenizer()
    split = pre_tokenizers.Split(" ", "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, tokenizer.pre_tokenizer])
    assert length_bound(tokenizer) is None


async def test_a_text_that_can_never_fit_is_not_tokenized(rig, tokenizer, monkeypatch):
    """Eight megabytes are refused with a 400 that says the numbers, as text and as a chat, at both
    doors; a text of just so many characters that it may fit is looked at."""
    lengths = []
    encode = GatewayTokenizer.encode

    def noted(tokenizer, text, **kind):
        lengths.append(len(text))
        return encode(tokenizer, text, **kind)

    monkeypatch.setattr(GatewayTokenizer, "encode", noted)
    longest = tokenizer.length_bound.longest
    long = "The quick brown fox 1 2 3. " * 280_000
    for answer in (await rig.complete(long), await rig.chat(long), await rig.complete([long])):
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert str(len(long) // longest + 1)[:3] in error["message"]
    async with channel(rig.grpc_address) as link:
        stub = gateway_pb2_grpc.GatewayServiceStub(link)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Generate(gateway_pb2.GatewayServiceGenerateRequest(text=long)).read()
    assert isinstance(error_of(raised.value), ContextTooLong)
    assert lengths == []
    for characters in (255 * longest, 255 * longest + 1):
        assert (await rig.complete("y" * characters)).status_code == 400
    assert lengths == [255 * longest]
    assert (await rig.complete("y" * 200)).status_code == 200


async def test_a_long_prompt_is_tokenized_beside_the_loop(tokenizer):
    """While a long text or chat is tokenized the event loop goes on turning."""
    prompts = Prompts(tokenizer, lambda: 10**9)
    text = "The quick brown fox jumps over the lazy dog. " * 20_000
    expected = tokenizer.encode(text, add_special_tokens=True)
    for work in (
        prompts.of_text(text, NOBODY),
        prompts.of_chat([{"role": "user", "content": text}], NOBODY),
    ):
        # Of processors' time: on a busy machine the loop waits for its turn like all others.
        ours, whole, turns = time.thread_time(), time.process_time(), 0
        task = asyncio.create_task(work)
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 10
        assert time.thread_time() - ours < (time.process_time() - whole) / 3
        assert len(task.result()) >= len(expected) - 1
    assert await prompts.of_text(text, NOBODY) == expected


async def test_one_tenant_has_one_thread(eventually):
    """Ten texts of one tenant leave a thread for another's, also where their clients go away; all
    threads are of use where there are no tenants; what fails gives its thread back."""
    threads, gate, running = TenantThreads(2, "test"), Event(), []

    def work(name):
        running.append(name)
        gate.wait(10)
        return name

    flood = [asyncio.create_task(threads.run(lambda: work("a"), "a")) for _ in range(10)]
    await eventually(lambda: running)
    gone = flood[:5]
    while gone:
        gone.pop().cancel()
    other = asyncio.create_task(threads.run(lambda: work("b"), "b"))
    await eventually(lambda: "b" in running)
    assert running == ["a", "b"]
    gate.set()
    assert await other == "b"
    assert await asyncio.gather(*flood[5:]) == ["a"] * 5
    gate.clear()
    both = [asyncio.create_task(threads.run(lambda: work("c"), "")) for _ in range(2)]
    await eventually(lambda: running.count("c") == 2)
    gate.set()
    await asyncio.gather(*both)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0, "a")
    # Exceptions hold on to their frames, and these to the line.
    del flood
    await eventually(lambda: gc.collect() >= 0 and not threads._lines, 5)


async def test_a_deadline_holds_in_the_line(tokenizer, monkeypatch):
    """A prompt whose time is over before its turn comes is refused then."""
    gate = Event()
    monkeypatch.setattr(GatewayTokenizer, "encode", lambda *_, **__: (gate.wait(10), ())[1])
    prompts = Prompts(tokenizer, lambda: 10**9)
    tenant = Terms("a", deadline=time.monotonic() + 20)
    first = asyncio.create_task(prompts.of_text("y" * 2000, tenant))
    with pytest.raises(DeadlineExceeded):
        await prompts.of_text("y" * 2000, Terms("a", deadline=time.monotonic() + 0.1))
    gate.set()
    await first
