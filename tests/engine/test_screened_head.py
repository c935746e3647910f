"""The screened head: exact where it matters, the same on both paths, int8 where it cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from slipstream.core.errors import CheckpointError
from slipstream.core.layer_plan import LayerPlan
from slipstream.engine import calibrate as calibrating
from slipstream.engine.calibrate import RECALL, documents, find_basis, hidden_states
from slipstream.engine.checkpoint import load_model
from slipstream.engine.linear import weight_bytes
from slipstream.engine.memory import available_bytes
from slipstream.engine.model_files import read_config
from slipstream.engine.runner import ModelRunner
from slipstream.engine.screened_head import (
    CANDIDATES,
    HeadBasis,
    ScreenedHead,
    candidates,
    converted_head,
    most_rank,
    screened_bytes,
    screening_pays,
)
from slipstream.engine.shards import make_shard
from tests.golden.families import build_config

VOCAB, HIDDEN, RANK = 24_000, 192, 64


def _whole(hidden: int) -> HeadBasis:
    """A basis that loses nothing but the 4 bits."""
    return HeadBasis(torch.eye(hidden), torch.eye(hidden), 1.0)


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    """[VOCAB, HIDDEN], bfloat16."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(VOCAB, HIDDEN, generator=generator).to(torch.bfloat16)


@pytest.fixture(scope="module")
def states() -> list[torch.Tensor]:
    """Hidden states that are mostly in 48 directions, in documents of 60; not those of `weight`."""
    generator = torch.Generator().manual_seed(2)
    axes = torch.randn(48, HIDDEN, generator=generator)
    documents = []
    for _ in range(12):
        along = torch.randn(60, 48, generator=generator) @ axes
        documents.append(along + 0.05 * torch.randn(60, HIDDEN, generator=generator))
    return documents


@pytest.fixture(scope="module")
def basis(weight: torch.Tensor, states: list[torch.Tensor]) -> HeadBasis:
    found = find_basis(weight, states)
    assert found is not None
    return found


def _rows(states: list[torch.Tensor], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.cat(states[:2])[:100].to(dtype)


def test_the_rank_is_that_of_the_states(basis: HeadBasis) -> None:
    """States in 48 directions need a rank of 64, the least multiple of 32 above; the recall is
    what was asked for."""
    assert basis.down.shape == (RANK, HIDDEN)
    assert basis.recall >= RECALL


def test_the_best_token_is_the_full_heads(
    weight: torch.Tensor, basis: HeadBasis, states: list[torch.Tensor]
) -> None:
    """Nearly every argmax is that of the full product, which a plain SVD of W would miss."""
    x = _rows(states)
    best = (x.float() @ weight.float().T).to(torch.bfloat16).argmax(-1)
    got = ScreenedHead(weight, None, basis)(x).argmax(-1)
    assert (got == best).float().mean() >= 0.99
    _, vectors = torch.linalg.eigh(weight.float().T @ weight.float())
    leading = vectors.flip(1)[:, :RANK]
    plain = ScreenedHead(weight, None, HeadBasis(leading.T.contiguous(), leading, 0.0))(x)
    assert (plain.argmax(-1) == best).float().mean() < 0.9


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_candidates_are_exact_and_the_rest_is_the_preview(
    weight: torch.Tensor,
    basis: HeadBasis,
    states: list[torch.Tensor],
    dtype: torch.dtype,
    biased: bool,
) -> None:
    """Where the preview is high the logits are those of the full product, to rounding; K or some
    more of a row are; all others are the preview's."""
    bias = torch.linspace(-3, 3, VOCAB).to(dtype) if biased else None
    head = ScreenedHead(weight.to(dtype), bias, basis)
    x = _rows(states, dtype)
    preview, logits = head.preview(head.down(x)), head(x)
    assert logits.dtype == dtype
    full = nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    count = head.candidates
    for row in range(len(x)):
        high = preview[row] >= preview[row].topk(count).values[-1]
        torch.testing.assert_close(logits[row][high].float(), full[row][high], rtol=2**-7, atol=0.1)
        changed = logits[row] != preview[row]
        assert changed.sum() <= 2 * count
        assert torch.equal(logits[row][~changed], preview[row][~changed])
        assert not (changed & (preview[row] < preview[row].topk(2 * count).values[-1])).any()


@pytest.mark.parametrize("vocab", [VOCAB, 1000, 40])
def test_both_paths_agree(weight: torch.Tensor, states: list[torch.Tensor], vocab: int) -> None:
    """The compiled path and torch's choose the same candidates, in vocabularies that are no whole
    number of blocks, too, and give them the same logits to rounding."""
    head = ScreenedHead(weight[:vocab].contiguous(), None, _whole(HIDDEN))
    assert head.compiled
    x = torch.cat((_rows(states), torch.zeros(1, HIDDEN, dtype=torch.bfloat16)))
    preview, compiled = head.preview(head.down(x)), head(x)
    head.compiled = False
    plain = head(x)
    torch.testing.assert_close(compiled.float(), plain.float(), rtol=2**-7, atol=1e-3)
    # A candidate of one path alone would have its preview on the other.
    apart = (compiled != plain) & ((compiled == preview) | (plain == preview))
    assert apart.float().mean() < 1e-3


def test_rows_do_not_depend_on_each_other(
    weight: torch.Tensor, basis: HeadBasis, states: list[torch.Tensor]
) -> None:
    """Each row has its own candidates: alone it gives what it gives among three, bit for bit."""
    head = ScreenedHead(weight, None, basis)
    x = _rows(states)[:4]
    alone = torch.cat([head(x[i : i + 1]) for i in range(4)])
    assert torch.equal(head(x), alone)
    assert torch.equal(head(x.view(2, 2, HIDDEN)).view(4, VOCAB), alone)


def test_not_a_number_is_not_hidden(weight: torch.Tensor, basis: HeadBasis) -> None:
    """A hidden state that is broken gives logits that are, and does not hang."""
    logits = ScreenedHead(weight, None, basis)(torch.full((1, HIDDEN), torch.nan).bfloat16())
    assert not logits.isfinite().all()


def test_no_basis_where_no_rank_pays(weight: torch.Tensor) -> None:
    """States in every direction, and a head so small that it is read at once, have none."""
    generator = torch.Generator().manual_seed(3)
    every = [torch.randn(60, HIDDEN, generator=generator) for _ in range(8)]
    assert find_basis(weight, every) is None
    assert most_rank(96, 32) == 0


def test_when_screening_pays() -> None:
    """A large vocabulary on few inputs pays; a rank that does reads half of int8 at most."""
    assert screening_pays(49_152, 576)
    assert screening_pays(128_256, 2048)
    assert not screening_pays(384, 64)
    assert not screening_pays(4000, 4096)
    for vocab, hidden in ((49_152, 576), (32_000, 4096)):
        most, int8 = most_rank(vocab, hidden), vocab * hidden * 9 // 8
        assert 2 * screened_bytes(vocab, hidden, most) <= int8
        assert most + 32 >= hidden or 2 * screened_bytes(vocab, hidden, most + 32) > int8
    assert candidates(49_152) == CANDIDATES
    assert candidates(384) < 384 // 16


def test_bytes_held(weight: torch.Tensor, basis: HeadBasis) -> None:
    """A screened head holds the matrix as it is, once, and the preview beside it."""
    held = weight_bytes(ScreenedHead(weight, None, basis))
    assert weight.numel() * 2 < held < weight.numel() * 2 + VOCAB * RANK + HIDDEN * RANK * 4


def test_a_head_that_cannot_be_screened_is_int8(
    weight: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No basis, no safetensors, and the basis of another model: int8, and the log says why."""
    linear = nn.Linear(HIDDEN, VOCAB, bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    int8 = converted_head(linear, "int8", None)
    broken, other = tmp_path / "broken", tmp_path / "other"
    broken.write_bytes(b"\x00" * 20)
    _whole(HIDDEN // 2).save(other)
    for basis in (None, tmp_path / "missing", broken, other):
        caplog.clear()
        head = converted_head(linear, "screened", basis)
        assert type(head) is type(int8)
        assert "int8" in caplog.text
    with pytest.raises(CheckpointError):
        HeadBasis.load(broken)


def test_a_model_loads_with_its_basis(tmp_path: Path) -> None:
    """What was saved is what the loaded head computes with; the split over shards counts its
    bytes; tied weights are held once."""
    folder = build_config("LlamaConfig", {"tie_word_embeddings": True}, tmp_path)
    config = read_config(folder)
    _whole(config.hidden_size).save(tmp_path / "basis")
    plan = LayerPlan(head_precision="screened")
    native = load_model(folder, dtype="bfloat16")
    loaded = load_model(folder, dtype="bfloat16", plan=plan, head_basis=tmp_path / "basis")
    head = loaded.model.get_output_embeddings()
    assert isinstance(head, ScreenedHead)
    embedding = loaded.model.get_input_embeddings().weight
    assert head.weight.data_ptr() == embedding.data_ptr()
    # The native head is a packed copy of the tied matrix.
    assert loaded.weight_bytes < native.weight_bytes
    part = make_shard(native.model.float(), plan, 0, 2)
    assert part.count == 2


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_default_model_is_calibrated(model_dir: Path) -> None:
    """On hidden states of other text than the calibration's, almost every greedy choice of the
    default model's screened head is the full head's."""
    loaded = load_model(model_dir, optimized=False)
    runner = ModelRunner(loaded, 1 << 28)
    with torch.inference_mode():
        texts = documents(model_dir)
        weight = loaded.model.get_output_embeddings().weight.data
        basis = find_basis(weight, hidden_states(runner, texts[1::2]))
        assert basis is not None
        x = torch.cat(hidden_states(runner, texts[:12:2])).to(torch.bfloat16)[:600]
        assert len(x) == 600
        best = nn.functional.linear(x, weight).argmax(-1)
        head = ScreenedHead(weight, None, basis)
        agreed = (head(x).argmax(-1) == best).float().mean()
    assert agreed >= 0.98


def test_no_calibration_without_room(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model larger than half of the free memory is not loaded beside the services."""
    size = sum(path.stat().st_size for path in tiny_model_dir.glob("*.safetensors"))
    monkeypatch.setattr(calibrating, "available_bytes", lambda: 2 * size - 2)
    with pytest.raises(CheckpointError, match="half"):
        calibrating.calibrate(tiny_model_dir, tmp_path)
    monkeypatch.setattr(calibrating, "available_bytes", lambda: 2 * size)
    calibrating.calibrate(tiny_model_dir, tmp_path)
    assert available_bytes() != 0


def test_calibration_as_a_process(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A model whose head is too small gets a reason in place of a basis."""
    command = [sys.executable, "-m", "slipstream.engine.calibrate"]
    done = subprocess.run([*command, tiny_model_dir, tmp_path], timeout=200, check=False)
    assert done.returncode == 0
    assert "int8" in (tmp_path / "reason.txt").read_text()
