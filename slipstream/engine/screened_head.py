"""The drafter's output projection in two looks: all tokens roughly, the best of them exactly.

After SVD-softmax (Shim et al., NeurIPS 2017). A low-rank factor A B of the projection W, at 4 bits,
gives preview logits of the whole vocabulary for a fraction of W's bytes; those tokens that stand
out in it get their exact logits from W's own rows, which for tied embeddings are in memory anyway.

A plain truncated SVD of W is of no use: it keeps what is large in W and not what hidden states
ask for. With C = E[h h^T] over real hidden states h and S = C^(1/2), the factors of rank r that
lose least in E|W h - A B h|^2 are A = W S V, B = V^T S^-1, where V are the r leading eigenvectors
of S W^T W S (as in SVD-LLM, arXiv 2403.07378). `calibrate` finds them, and chooses r as the least
that keeps 0.995 of the greedy choices.

What is wrong in the preview costs a draft that the verifier refuses, and no token. Sampling above
temperature 0 sees exact logits for the candidates and previews for the tail.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from slipstream.core.errors import CheckpointError
from slipstream.core.layer_plan import HeadPrecision
from slipstream.engine import screen_kernel
from slipstream.engine.linear import converted, make_linear

log = logging.getLogger(__name__)

# Candidates are at least so many. On SmolLM2-135M with rank 224 they hold 0.9995 of the greedy
# choices; 256 of them hold 0.994.
CANDIDATES = 512
# Tokens whose best preview stands for them when candidates are chosen.
BLOCK = screen_kernel.BLOCK
# Ranks are multiples of what shares a scale.
RANK_STEP = 32
# Bits of a weight with its share of the scale and the least value of its group of 32.
_PREVIEW_BITS, _INT8_BITS = 5, 9
# A smaller head at int8 is read in less time than choosing candidates takes.
_WORTH_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class HeadBasis:
    """What turns a head into a screened one.

    Attributes:
        down: float32 [rank, hidden], B: a hidden state in whitened coordinates, best first.
        up: float32 [hidden, rank]: A is W times it.
        recall: share of held-out hidden states whose best token was a candidate.
    """

    down: torch.Tensor
    up: torch.Tensor
    recall: float

    def save(self, path: Path) -> None:
        tensors = {"down": self.down.contiguous(), "up": self.up.contiguous()}
        save_file(tensors, path, {"recall": repr(self.recall)})

    @classmethod
    def load(cls, path: Path) -> HeadBasis:
        """Raises CheckpointError where the file holds no basis."""
        try:
            with safe_open(path, "pt") as file:
                down, up = file.get_tensor("down"), file.get_tensor("up")
                recall = float((file.metadata() or {})["recall"])
        except (SafetensorError, OSError, ValueError, KeyError) as failure:
            raise CheckpointError(f"cannot read the head's basis {path}: {failure}") from failure
        if down.ndim != 2 or down.shape != up.T.shape:
            raise CheckpointError(f"{path} holds no basis of a head")
        return cls(down, up, recall)


def candidates(vocab: int) -> int:
    """Fewest candidates of a row."""
    return min(CANDIDATES, max(1, vocab // (4 * BLOCK)))


def screened_bytes(vocab: int, hidden: int, rank: int) -> int:
    """Bytes that a screened head of 2-byte weights reads for one row."""
    return vocab * rank * _PREVIEW_BITS // 8 + (rank + candidates(vocab)) * hidden * 2


def likely_rank(hidden: int) -> int:
    """The rank that is reckoned with before one has been found."""
    return -(-2 * hidden // (5 * RANK_STEP)) * RANK_STEP


def most_rank(vocab: int, hidden: int) -> int:
    """The largest rank that reads at most half of what an int8 head does; 0: there is none."""
    int8 = vocab * hidden * _INT8_BITS // 8
    if int8 < _WORTH_BYTES:
        return 0
    ranks = range(RANK_STEP, hidden, RANK_STEP)
    return max((r for r in ranks if 2 * screened_bytes(vocab, hidden, r) <= int8), default=0)


def screening_pays(vocab: int, hidden: int) -> bool:
    """Whether a head of this shape is worth calibrating for: by bytes, at the likely rank."""
    return likely_rank(hidden) <= most_rank(vocab, hidden)


class ScreenedHead(nn.Module):
    """x [..., hidden] to logits [..., vocab]: a preview, exact where it is high.

    Candidates of a row are all tokens whose preview is at least the K-th highest among the maxima
    of blocks of 16 tokens, K as `candidates` says: a bound below the K-th highest preview, so that
    they are K or some more, found without sorting the vocabulary.

    Args:
        weight: [vocab, hidden], kept as it is; bias: [vocab] or None.

    Raises:
        CheckpointError: the basis is that of another head.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, basis: HeadBasis) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        if basis.down.shape[1] != self.in_features:
            raise CheckpointError(
                f"the basis is for a head of {basis.down.shape[1]} inputs, not {self.in_features}"
            )
        up, down = basis.up.to(weight.device), basis.down.to(weight)
        # In parts: the whole product in float32 would be several times what is kept of it.
        parts = [(part.float() @ up).to(weight.dtype) for part in weight.split(1 << 13)]
        self.down = make_linear(down, None, "native")
        on_cpu = weight.device.type == "cpu"
        self.preview = make_linear(torch.cat(parts), bias, "int4" if on_cpu else "native")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.candidates = candidates(self.out_features)
        plain = bias is None and weight.is_contiguous()
        self.compiled = on_cpu and plain and weight.dtype == torch.bfloat16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        logits: torch.Tensor = self.preview(self.down(rows))
        if self.compiled:
            rows, logits = rows.contiguous(), logits.contiguous()
            screen_kernel.rescore(
                rows.data_ptr(), self.weight.data_ptr(), logits.data_ptr(),
                *logits.shape, self.in_features, self.candidates,
            )  # fmt: skip
        else:
            self._rescore(rows, logits)
        return logits.view(*x.shape[:-1], self.out_features)

    def _rescore(self, rows: torch.Tensor, logits: torch.Tensor) -> None:
        """Sets the candidates' logits, on any device and in any dtype."""
        ragged = -self.out_features % BLOCK
        blocks = F.pad(logits, (0, ragged), value=-torch.inf).unflatten(-1, (-1, BLOCK))
        least = blocks.amax(-1).topk(self.candidates).values[:, -1:]
        row, token = (logits >= least).nonzero(as_tuple=True)
        exact = (self.weight[token].float() * rows[row].float()).sum(-1)
        if self.bias is not None:
            exact += self.bias[token].float()
        logits[row, token] = exact.to(logits.dtype)


def converted_head(head: nn.Linear, precision: HeadPrecision, basis: Path | None) -> nn.Module:
    """The head at `precision`; at int8, and why in the log, where it cannot be screened."""
    if precision != "screened":
        return converted(head, precision)
    if basis is not None:
        try:
            bias = None if head.bias is None else head.bias.data
            return ScreenedHead(head.weight.data, bias, HeadBasis.load(basis))
        except CheckpointError as failure:
            log.warning("the head is not screened: %s", failure.message)
    log.warning("the head runs at int8 instead of screened")
    return converted(head, "int8")
