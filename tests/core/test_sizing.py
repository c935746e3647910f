"""The tables of docs/kubernetes.md that follow from formulas."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slipstream.core.ideal import free_running_speedup

PAGE = (Path(__file__).parents[2] / "docs/kubernetes.md").read_text(encoding="utf-8")
# Weights of a model of the shape of Llama-3.1-8B: of a layer's two halves, and of the output head.
LAYERS, ATTENTION, MLP, HEAD = 32, 41.943e6, 176.161e6, 525.337e6
TARGET_GB, TARGET_TBS = 15.0, 3.35
TERABYTES = {
    "H100": 3.35, "A100": 2.04, "L40S": 0.864, "A10": 0.6, "L4": 0.3,
    "MIG 3g.40gb": 1.675, "MIG 1g.10gb": 0.42,
}  # fmt: skip


def _table(first_cell: str) -> list[list[str]]:
    """The cells of the table whose head begins so, head included."""
    lines = PAGE[PAGE.index(f"| {first_cell} |") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    return [row for row in rows if not set(row[0]) <= set("-: ")]


def test_speed_ratios() -> None:
    """c of each drafter on each GPU is bytes over bandwidth, against the target's."""
    head, *rows = _table("drafter | GB")
    assert head[2:] == list(TERABYTES)
    for name, size, *ratios in rows:
        skipped = 0.4 if "40%" in name else 0.0
        bits = {"bfloat16": 16.0, "8 bits": 8.0, "4 bits": 4.5}[name.split(",")[0]]
        weights = LAYERS * (1 - skipped) * (ATTENTION + MLP) + HEAD
        gigabytes = weights * bits / 8 / 1e9
        assert float(size) == pytest.approx(gigabytes, abs=0.051)
        for gpu, ratio in zip(TERABYTES, ratios, strict=True):
            expected = (TARGET_GB / TARGET_TBS) / (gigabytes / TERABYTES[gpu])
            assert float(ratio) == pytest.approx(expected, abs=0.011), (name, gpu)


def test_expected_speed() -> None:
    """The gain for each acceptance and c is that of the formula, with a window of 8."""
    head, *rows = _table("a | c = 1")
    ratios = [float(re.sub("c = ", "", cell)) for cell in head[1:]]
    for acceptance, *gains in rows:
        for ratio, gain in zip(ratios, gains, strict=True):
            expected = free_running_speedup(float(acceptance), ratio, 8)
            assert float(gain) == pytest.approx(expected, abs=0.006), (acceptance, ratio)
