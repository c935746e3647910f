"""A sequence that begins with another's keys and values has the bits of one computed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from pathlib import Path

import pytest
import torch

from slipstream.core.prefix import PrefixChain
from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.exactness import Shapes, choose_shapes
from slipstream.engine.kv_pool import BLOCK_TOKENS, BlockTable
from slipstream.engine.runner import ModelRunner

CHUNK = 128
TAIL = 10


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def strict(
    request: pytest.FixtureRequest, tiny_model_dir: Path
) -> Iterator[tuple[ModelRunner, Shapes]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    runner = ModelRunner(load_model(tiny_model_dir, dtype=request.param), 16 << 20)
    yield runner, choose_shapes(runner, "strict")[1]
    torch.set_num_threads(before)


class _Engine:
    """Sequences of one runner, computed as a scheduler might: prompts in pieces, beside others."""

    def __init__(self, runner: ModelRunner, shapes: Shapes, rng: random.Random) -> None:
        self.runner, self.rng = runner, rng
        # Where rows do not agree in any number, pieces are whole chunks, alone.
        self.mixes = shapes.max_rows >= 64
        self.most = min(shapes.max_rows, 256)
        self.multiple = BLOCK_TOKENS if self.mixes else CHUNK
        self.noise = [rng.randrange(384) for _ in range(600)]
        self.beside = runner.pool.allocate(len(self.noise))

    def start(self, tokens: Seq[int], salt: str = "model") -> tuple[BlockTable, int]:
        """A table of a sequence, and how many of its positions are computed already."""
        chain = PrefixChain(salt, tokens)
        prefix = self.runner.pool.adopt(chain, len(tokens) - TAIL, self.multiple)
        table = self.runner.pool.allocate(len(tokens), prefix)
        assert table is not None
        return table, prefix.capacity if prefix else 0

    def compute(self, tokens: Seq[int], table: BlockTable, done: int) -> torch.Tensor:
        """The logits of the last TAIL positions, [TAIL, vocab]."""
        end, rows = len(tokens) - TAIL, []
        while done < end:
            at = min(end, done - done % CHUNK + CHUNK)
            if self.mixes:
                at = min(end, done + self.rng.choice([1, 5, 16, 33, self.most]))
            self._forward(Segment(tokens[done:at], done, table, 0))
            done = at
        while done < len(tokens):
            at = min(len(tokens), done + self.rng.choice([1, 1, 2, 4]))
            rows.append(self._forward(Segment(tokens[done:at], done, table, at - done)))
            done = at
        return torch.cat(rows)

    def _forward(self, segment: Segment) -> torch.Tensor:
        room = self.most - len(segment.tokens)
        count = self.rng.choice([0, 1, min(room, 40)]) if self.mixes and room > 0 else 0
        if not count:
            return self.runner.forward([segment]).clone()
        assert self.beside is not None
        other = Segment(self.noise[:count], 0, self.beside, 1)
        return self.runner.forward([other, segment])[1:].clone()

    def close(self) -> None:
        assert self.beside is not None
        self.runner.pool.release(self.beside)
        self.runner.pool.forget()
        assert self.runner.pool.num_used == 0


def _alone(runner: ModelRunner, tokens: Seq[int]) -> torch.Tensor:
    """What plain decoding gives: the prompt in canonical chunks, then row after row."""
    table = runner.pool.allocate(len(tokens))
    assert table is not None
    end = len(tokens) - TAIL
    for start in range(0, end, CHUNK):
        piece = tokens[start : min(start + CHUNK, end)]
        runner.forward([Segment(piece, start, table, 0)])
    rows = [
        runner.forward([Segment([tokens[at]], at, table, 1)]).clone()
        for at in range(end, len(tokens))
    ]
    runner.pool.release(table)
    return torch.cat(rows)


@pytest.mark.parametrize("seed", range(4))
def test_on_another_ones_blocks(strict: tuple[ModelRunner, Shapes], seed: int) -> None:
    """Whoever computed a block, in whatever pieces and company: logits are bit for bit those of the
    sequence alone, as are those of a third that begins with what the second added."""
    runner, shapes = strict
    rng = random.Random(seed)
    engine = _Engine(runner, shapes, rng)
    common = [rng.randrange(384) for _ in range(rng.choice([130, 270, 560]))]
    texts = [common + [rng.randrange(384) for _ in range(rng.randint(20, 90))] for _ in range(2)]
    texts.append(texts[1] + [rng.randrange(384) for _ in range(rng.randint(20, 90))])
    expected = [_alone(runner, tokens) for tokens in texts]
    reused = []
    for tokens, wanted in zip(texts, expected, strict=True):
        table, cached = engine.start(tokens)
        reused.append(cached)
        assert torch.equal(engine.compute(tokens, table, cached), wanted)
        computed = len(tokens) if engine.mixes else (len(tokens) - TAIL) // CHUNK * CHUNK
        runner.pool.publish(table, PrefixChain("model", tokens), computed)
        runner.pool.release(table)
    assert reused[0] == 0
    assert reused[1] == len(common) // engine.multiple * engine.multiple
    assert reused[2] >= reused[1]
    engine.close()
