"""What loading a model costs beside the model: memory on the way, files read twice, imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from drafter_service.__main__ import _make_runner
from drafter_service.settings import Settings
from slipstream.core.layer_plan import LayerPlan
from slipstream.engine import integer_kernel, linear, model_files, transforms
from slipstream.engine.checkpoint import load_model


def test_layers_are_read_when_their_turn_comes(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a layer is converted no other one is in memory as it is on disk: the peak is one layer
    beside the result, not the whole model twice."""
    models: list[nn.Module] = []
    held: list[int] = []
    keep, convert = transforms.convert_layers, transforms._convert_parts

    def watched(layer: nn.Module, precision: object) -> None:
        linears = [m for m in models[0].modules() if type(m) is nn.Linear]
        held.append(sum(not m.weight.is_meta for m in linears))
        convert(layer, precision)  # type: ignore[arg-type]

    def noted(model: nn.Module, *rest: object) -> None:
        models.append(model)
        keep(model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("slipstream.engine.checkpoint.convert_layers", noted)
    monkeypatch.setattr(transforms, "_convert_parts", watched)
    load_model(tiny_model_dir, dtype="bfloat16", plan=LayerPlan(precision="int8"))
    assert held == [7] * 4


def test_the_drafter_reads_its_folder_for_identity_once(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choosing the plan and loading share what was read of config and fingerprint."""
    calls: list[str] = []
    for name in ("fingerprint", "read_config"):
        real = getattr(model_files, name)
        monkeypatch.setattr(
            model_files, name, lambda path, n=name, f=real: (calls.append(n), f(path))[1]
        )
    arguments = {"model": tiny_model_dir, "kv_cache_gib": 0.01}
    _make_runner(Settings.model_construct(**{**_defaults(), **arguments}))
    assert sorted(calls) == ["fingerprint", "read_config"]


def _defaults() -> dict[str, object]:
    return {name: field.default for name, field in Settings.model_fields.items()}


def test_weights_packed_by_blocks_of_rows_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's layout of a weight does not depend on how many rows are packed at once."""
    weight = torch.randn(10 * integer_kernel.TILE, 3 * integer_kernel.GROUP)
    for bits in (4, 8):
        whole = integer_kernel.pack(*linear.quantized_groups(weight, bits), bits)
        monkeypatch.setattr(linear, "_BLOCK_ROWS", 4 * integer_kernel.TILE)
        blocks = linear.packed_groups(weight, bits)
        assert all(torch.equal(a, b) for a, b in zip(whole, blocks, strict=True))


def test_a_service_does_not_hold_what_only_training_needs(tiny_model_dir: Path) -> None:
    """scipy and sklearn, which transformers imports for losses, and torch's compiler are in no
    service's memory once its model is there; they can still be used by whoever needs them."""
    program = (
        "import sys; import verifier_service.__main__, drafter_service.__main__\n"
        "from pathlib import Path; from slipstream.engine.checkpoint import load_model\n"
        f"load_model(Path({str(tiny_model_dir)!r}))\n"
        "unused = {'scipy.optimize', 'sklearn', 'torch._dynamo', 'torch.distributed.tensor'}\n"
        "print(sorted(unused & set(sys.modules)))\n"
        "import torch, scipy.optimize\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item())\n"
        "print(torch.distributed.is_available())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=200
    )
    assert ended.stdout.split() == ["[]", "2.0", "True"]


def test_transformers_may_have_been_imported_before() -> None:
    """Whoever uses transformers' own way to find scipy first gets it, and our engine, too."""
    program = (
        "from transformers.utils import is_scipy_available; assert is_scipy_available()\n"
        "import slipstream.engine.checkpoint"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200)
