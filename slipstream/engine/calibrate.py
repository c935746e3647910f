"""Model folder -> basis of its screened head, from hidden states over a text that comes along.

Runs as `python -m slipstream.engine.calibrate MODEL FOLDER`, a process of its own: it holds the
whole model, of which a drafter holds a part. Exit code 0, or 2 with the reason in the last line of
stderr. Where screening does not pay, `reason.txt` says so in place of `basis.safetensors`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from slipstream.core.errors import CheckpointError, SlipstreamError
from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.linear import quantized_groups
from slipstream.engine.memory import available_bytes
from slipstream.engine.runner import ModelRunner
from slipstream.engine.screened_head import RANK_STEP, HeadBasis, candidates, most_rank

TEXT = Path(__file__).with_name("calibration.jsonl")
RECALL = 0.995
# Every so many-th document judges the basis of the others.
_HELD_OUT = 4
_POOL_BYTES = 1 << 28
# Of the mean eigenvalue: directions that the text never took keep a share in the basis.
_RIDGE = 1e-4


def documents(folder: Path) -> list[list[int]]:
    """Token ids of the calibration text: prose, code, lists, dialogue, tables, other languages.

    Raises:
        CheckpointError: the model has no tokenizer that can be used.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as failure:
        raise CheckpointError(f"cannot read the tokenizer in {folder}: {failure}") from failure
    found = []
    for line in TEXT.read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        text = document.get("text")
        if text is None and tokenizer.chat_template:
            text = tokenizer.apply_chat_template(document["messages"], tokenize=False)
        elif text is None:
            text = "\n\n".join(turn["content"] for turn in document["messages"])
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


def hidden_states(runner: ModelRunner, documents: list[list[int]]) -> list[torch.Tensor]:
    """What the head is given at each position: float32 [tokens, hidden] for each document."""
    seen: list[torch.Tensor] = []
    head: nn.Module = runner.loaded.model.get_output_embeddings()  # type: ignore[operator]
    hook = head.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]).float())
    )
    states = []
    for tokens in documents:
        table = runner.pool.allocate(len(tokens))
        if table is None:
            raise CheckpointError(f"no room for a calibration text of {len(tokens)} tokens")
        runner.forward([Segment(tokens, 0, table, num_logits=len(tokens))])
        states.append(torch.cat(seen)[: len(tokens)])
        seen.clear()
        runner.pool.release(table)
    hook.remove()
    return states


def find_basis(weight: torch.Tensor, states: list[torch.Tensor]) -> HeadBasis | None:
    """The basis of the smallest rank whose recall is high enough; None where none pays.

    The rank is chosen on held-out documents, with the preview at the bits that it will have; the
    basis comes from all of them.

    Args:
        weight: [vocab, hidden]; states: [tokens, hidden] for each document.
    """
    steps = most_rank(*weight.shape) // RANK_STEP
    gram = _gram(weight)
    judged = torch.cat(states[::_HELD_OUT])
    rest = [state for i, state in enumerate(states) if i % _HELD_OUT]
    up, down = _factors(gram, torch.cat(rest))
    low, high, found = 0, steps + 1, 0.0
    # Recall grows with the rank: the smallest that is enough lies between `low` and `high`.
    while high - low > 1:
        middle = (low + high) // 2
        rank = middle * RANK_STEP
        reached = recall(weight, up[:, :rank], down[:rank], judged)
        if reached >= RECALL:
            high, found = middle, reached
        else:
            low = middle
    if high > steps:
        return None
    up, down = _factors(gram, torch.cat(states))
    rank = high * RANK_STEP
    return HeadBasis(down[:rank].contiguous(), up[:, :rank].contiguous(), found)


def recall(
    weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor, states: torch.Tensor
) -> float:
    """Share of the states whose best token is among the K highest previews; K: `candidates`."""
    previews, exact = [], []
    coordinates = states @ down.T
    for part in weight.split(1 << 13):
        factor = part.float() @ up
        codes, scale, least = quantized_groups(factor, 4)
        factor = codes.view(*scale.shape, -1) * scale[..., None] + least[..., None]
        previews.append((coordinates @ factor.flatten(1).T).to(torch.bfloat16))
        exact.append((states @ part.float().T).to(torch.bfloat16))
    preview, best = torch.cat(previews, 1), torch.cat(exact, 1).argmax(-1, keepdim=True)
    ahead = (preview > preview.gather(1, best)).sum(1)
    return float((ahead < candidates(weight.shape[0])).float().mean())


def _gram(weight: torch.Tensor) -> torch.Tensor:
    """W^T W, float64 [hidden, hidden]."""
    gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    for part in weight.split(1 << 13):
        gram += (part.float().T @ part.float()).double()
    return gram


def _factors(gram: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S V and V^T S^-1 of all ranks, best first: float32 [hidden, hidden] both."""
    second = (states.T @ states).double() / len(states)
    second.diagonal().add_(_RIDGE * second.diagonal().mean())
    values, vectors = torch.linalg.eigh(second)
    roots = values.clamp_min(1e-30).sqrt()
    root, inverse = (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
    # `eigh` gives the least first.
    leading = torch.linalg.eigh(root @ gram @ root)[1].flip(1)
    return (root @ leading).float(), (leading.T @ inverse).float()


def _check_room(folder: Path) -> None:
    """Refuses what would take memory from the services beside it. Raises CheckpointError."""
    needed = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    room = available_bytes()
    if room is not None and needed > room // 2:
        raise CheckpointError(
            f"the model takes {needed / 1e9:.1f} GB, more than half of the free {room / 1e9:.1f} GB"
        )


@torch.inference_mode()
def calibrate(folder: Path, into: Path) -> None:
    """Writes what is found about the model in `folder` into another. Raises SlipstreamError."""
    _check_room(folder)
    loaded = load_model(folder, optimized=False)
    head: Any = loaded.model.get_output_embeddings()  # type: ignore[operator]
    vocab, hidden = head.weight.shape
    basis = None
    if most_rank(vocab, hidden):
        states = hidden_states(ModelRunner(loaded, _POOL_BYTES), documents(folder))
        basis = find_basis(head.weight.data, states)
    if basis is not None:
        basis.save(into / "basis.safetensors")
        return
    reason = f"no rank has a recall of {RECALL} and reads at most half the bytes of an int8 head"
    (into / "reason.txt").write_text(reason)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m slipstream.engine.calibrate")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parsed = parser.parse_args(arguments)
    try:
        calibrate(parsed.model, parsed.folder)
    except SlipstreamError as failure:
        sys.stderr.write(f"\n{failure.message}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
