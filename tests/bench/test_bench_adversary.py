"""The benchmark's rows of plain decoding and of a drafter that guesses at random, for real."""

from __future__ import annotations

import pytest

from slipstream.bench.questions import DEFAULT_QUESTIONS
from slipstream.bench.run import BenchSettings, run


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_random_drafts_cost_no_token(tiny_model_dir, tmp_path):
    """Both rows are measured with the same answers, in processes of their own whose memory is
    told; the file is written, and nobody runs on."""
    settings = BenchSettings(
        questions=DEFAULT_QUESTIONS,
        model=tiny_model_dir,
        model_name="tiny",
        out=tmp_path / "bench.json",
        limit=2,
        max_tokens=16,
        repeats=1,
        rows=("plain-1core", "drafter-random"),
        exactness="strict",
    )
    lines: list[str] = []
    results, summary = await run(settings, lines.append)
    assert [row.name for row in results] == ["plain-1core", "drafter-random"]
    assert all(row.generated_tokens == results[0].generated_tokens for row in results)
    bars = {bar.name: bar for bar in summary.bars}
    assert bars["answers that differ where none may"].met is True
    assert bars["drafter-random / plain-1core"].measured is not None
    assert [line for line in lines if line.startswith("starting")] == [
        "starting one-core",
        "starting random",
    ]
    assert '"random-drafter"' in settings.out.read_text()
