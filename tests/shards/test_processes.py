"""A drafter of two shards as real processes: same tokens; the loss of a shard costs speed only."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from drafter_service.settings import Settings
from drafter_service.shard_hop import Hop
from slipstream.core.errors import (
    ConfigurationError,
    InvalidRequest,
    ModelMismatch,
    SlipstreamError,
    Unavailable,
)
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.model_folder import fingerprint
from slipstream.core.params import SamplingParams
from slipstream.wire.process import read_settings
from slipstream.wire.proto import shard_pb2, shard_pb2_grpc
from slipstream.wire.transport import channel, is_serving
from tests.integration.client import GREEDY, Client, request
from tests.integration.processes import Service, free_address, until
from tests.verifier.rig import write_checkpoint

SAMPLED = SamplingParams(
    temperature=1.0, top_k=50, top_p=0.95, repetition_penalty=1.1, presence_penalty=0.3, seed=7
)
PROMPT = tuple(range(10, 40))
OPTIONS = ("--threads", "1", "--stop-grace", "0.5", "--dtype", "float32", "--kv-cache-gib", "0.06")
TIMEOUT = 2.0
# For an answer that is not to be late.
PATIENCE = 60.0


class Row:
    """Two shards and their verifier.

    Args:
        more: options of the verifier.
    """

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder = folder
        self.model = write_checkpoint(folder / "model", context=4096)
        plan = folder / "plan.json"
        LayerPlan().save(plan)
        self._options = ("--model", str(self.model), *OPTIONS, "--layer-plan", str(plan))
        self.addresses = [free_address(), free_address()]
        self.shards = [self.start(index) for index in range(2)]
        options = (
            "--model", str(self.model), *OPTIONS,
            "--drafter", self.addresses[0], "--exactness", "strict", "--draft-length", "8",
            *more,
        )  # fmt: skip
        self.verifier = Service("verifier", free_address(), options, folder / "verifier.log")

    def start(self, index: int, *more: str) -> Service:
        options = [*self._options, "--shard-index", str(index), "--shard-count", "2"]
        if index == 0:
            options += ["--next", self.addresses[1], "--shard-timeout", str(TIMEOUT)]
        log = self.folder / f"shard-{index}.log"
        return Service("drafter", self.addresses[index], [*options, *more], log)

    async def status(self, index: int = 0) -> list[shard_pb2.ShardStatus]:
        async with channel(self.addresses[index]) as link:
            stub = shard_pb2_grpc.ShardServiceStub(link)
            return list((await stub.GetShard(shard_pb2.GetShardRequest(), timeout=60)).shards)

    async def idle(self) -> bool:
        return all(s.open_sequences == s.kv_blocks_used == 0 for s in await self.status())


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Row]:
    folder = tmp_path_factory.mktemp("row")
    (folder / "model").mkdir()
    made = Row(folder)
    try:
        for service in (*made.shards, made.verifier):
            service.wait_ready()
        yield made
    finally:
        for service in (*made.shards, made.verifier):
            service.kill()


@pytest.fixture
async def client(row: Row):
    async with Client(row.verifier.address) as one:
        await until(one.connected)
        yield one


async def test_the_same_tokens(row, client) -> None:
    """One and four sequences, greedy and with penalties: plain tokens, and drafts are accepted."""
    asked = [
        request(PROMPT[: 5 * i + 1], params, max_tokens=60)
        for i, params in enumerate((GREEDY, SAMPLED, GREEDY, SAMPLED))
    ]
    plain = []
    for one in asked:
        one.speculative = False
        plain.append((await client.generate(one)).tokens)
        one.speculative = True
        alone = await client.generate(one)
        assert alone.tokens == plain[-1]
    together = await client.all(asked)
    assert [answer.tokens for answer in together] == plain
    await client.with_drafts(asked[0], plain[0])
    await until(row.idle)
    first, second = await row.status()
    assert (first.index, second.index, first.count) == (0, 1, 2)
    assert (first.first_layer, first.end_layer, second.end_layer) == (0, 1, 2)
    # A row that broke on a busy machine took some passes along.
    assert first.passes >= second.passes > 0
    assert 0 < second.busy_seconds < second.up_seconds


async def _while_generating(client: Client, act) -> None:
    """Three generations go on while `act` happens to a shard, and give the plain tokens."""
    asked = request(PROMPT, SAMPLED, max_tokens=250)
    asked.speculative = False
    plain = (await client.generate(asked)).tokens
    asked.speculative = True
    done = False

    async def once(tokens: list[int]) -> None:
        nonlocal done
        if len(tokens) > 20 and not done:
            done = True
            act()

    answers = await asyncio.gather(*(client.generate(asked, once) for _ in range(3)))
    assert done
    assert all(answer.tokens == plain for answer in answers)


async def _drafts_again(client: Client) -> None:
    # A new process loads first.
    await until(client.connected, 150)
    await client.with_drafts(request(PROMPT, GREEDY, max_tokens=60))


@pytest.mark.parametrize("index", [0, 1])
async def test_a_killed_shard(row, client, index) -> None:
    """SIGKILL of either shard: the tokens stay the same; a new one and the row is whole again."""
    await _while_generating(client, row.shards[index].kill)
    await until(lambda: _not(client.connected))
    if index:
        # Shard 0 stays, says that it does not serve, and refuses the verifier with the reason.
        await until(lambda: _not(lambda: is_serving(row.addresses[0])))
        assert row.shards[0].process.poll() is None
        row.shards[0].wait_log("no row of shards")
    row.shards[index] = row.start(index)
    await _drafts_again(client)
    await until(row.idle)


async def test_a_hanging_shard(row, client) -> None:
    """A stopped shard keeps its connections: an overdue pass tells. Then it wakes."""
    hung = row.shards[1]
    try:
        await _while_generating(client, lambda: hung.signal(signal.SIGSTOP))
        # On a busy machine what went on may have been over before, and no pass under way then.
        asked = request(PROMPT, SAMPLED, max_tokens=250)

        async def lost() -> bool:
            await client.generate(asked)
            return not await client.connected()

        await until(lost)
        row.shards[0].wait_log("did not finish a pass")
    finally:
        hung.signal(signal.SIGCONT)
    await _drafts_again(client)
    await until(row.idle)


async def _not(condition) -> bool:
    return not await condition()


def _hello(row: Row, **fields: object) -> shard_pb2.ShardHello:
    right = {
        "model_fingerprint": fingerprint(row.model),
        "layer_plan": LayerPlan().digest(),
        "index": 1,
        "count": 2,
        "dtype": "float32",
    }
    return shard_pb2.ShardHello(**right | fields)


@pytest.mark.parametrize(
    ("fields", "kind", "word"),
    [
        ({"model_fingerprint": "0" * 32}, ModelMismatch, "same model"),
        ({"layer_plan": "1" * 32}, ModelMismatch, "same layer plan"),
        ({"index": 0}, ConfigurationError, "--shard-index"),
        ({"count": 3}, ConfigurationError, "--shard-count"),
        ({"dtype": "bfloat16"}, ConfigurationError, "--dtype"),
        ({}, ConfigurationError, "--kv-cache-gib"),
    ],
)
async def test_shards_that_do_not_fit_together(row, fields, kind, word) -> None:
    """A hello of another model, plan, place, dtype or pool is refused, with what to check."""
    async with Hop(row.addresses[1], PATIENCE) as hop:
        with pytest.raises(kind, match=word):
            await hop.greet(_hello(row, **fields))


async def test_streams_that_are_none(row, client) -> None:
    """No hello, rubbish, a second row, a row through shard 0, nobody there: a typed error each."""
    blocks = None
    async with channel(row.addresses[1]) as link:
        stream = shard_pb2_grpc.ShardServiceStub(link).Run()
        await stream.write(shard_pb2.RunRequest(close={"sequence_id": 1}))
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stream.read()
        assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = (await row.status(1))[0]
    # The pool of the only layer here, in blocks of 16 tokens of 2 heads of 8 float32 numbers.
    blocks = status.kv_bytes // (2 * 16 * 2 * 8 * 4) - 1
    async with Hop(row.addresses[1], PATIENCE) as hop:
        with pytest.raises(Unavailable, match="already"):
            await hop.greet(_hello(row, kv_blocks=blocks))
    async with Hop(row.addresses[0], PATIENCE) as hop:
        with pytest.raises(InvalidRequest, match="shard 0"):
            await hop.greet(_hello(row))
    async with Hop(free_address(), TIMEOUT) as hop:
        with pytest.raises(SlipstreamError):
            await hop.greet(_hello(row))
    await until(client.connected)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--shard-count", "2"], "--next"),
        (["--shard-count", "2", "--shard-index", "1", "--next", "a:1"], "--next"),
        (["--shard-count", "2", "--shard-index", "2"], "--shard-index"),
        (
            ["--shard-count", "2", "--next", "a:1", "--layer-plan", "adaptive"],
            "--layer-plan adaptive needs a drafter in one piece",
        ),
    ],
)
def test_settings_that_are_wrong(options, word) -> None:
    """Places in a row that cannot be are refused, and the option is named."""
    with pytest.raises(ConfigurationError, match=word):
        read_settings(Settings, ["--model", "m", *options])


def test_more_shards_than_layers(row, tmp_path) -> None:
    """A shard that the model has no layer for ends with one line and exit code 2."""
    options = ["--model", str(row.model), "--shard-count", "3", "--next", "127.0.0.1:1"]
    service = Service("drafter", free_address(), options, tmp_path / "log")
    try:
        assert service.process.wait(150) == 2
    finally:
        service.kill()
    assert "1 to 2 shards" in service.log
    assert "Traceback" not in service.log
