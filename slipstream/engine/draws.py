"""From a forward pass's logits to tokens: argmax of all rows at once, other rules by row."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from slipstream.core.errors import InternalError
from slipstream.core.sampling import Logits
from slipstream.engine.reductions import argmax_bf16, sum_exp
from slipstream.engine.sequence import Sequence


class Draws:
    """The logits of one forward pass, read by row.

    Args:
        logits: [rows, vocab], any dtype and device.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits
        self._floats: dict[int, Logits] = {}
        self._argmax, self._finite = _argmax(logits)

    def row(self, index: int) -> Logits:
        """float32 [vocab]. Most rows of most steps are never asked for."""
        row = self._floats.get(index)
        if row is None:
            row = self._floats[index] = self._logits[index].float().cpu().numpy()
        return row

    def token(self, index: int, sequence: Sequence) -> int:
        """The token that follows `sequence` according to row `index`.

        Raises:
            InternalError: the model produced no finite logits.
        """
        if not self._finite[index]:
            raise InternalError("the model produced logits that are not finite numbers")
        if sequence.params.plain_argmax:
            return self._argmax[index]
        return sequence.draw(self.row(index))

    def probability(self, index: int, token: int, temperature: float) -> float:
        """Share of `token` in row `index` at a temperature, 0 taken as 1; without any filters."""
        row = self.row(index)
        best = row[self._argmax[index]]
        scale = np.float32(1.0 / temperature if temperature > 0 else 1.0)
        share = np.exp((row[token] - best) * scale) / sum_exp(row, best, scale)
        return float(share)

    def run(self, index: int, sequence: Sequence, guesses: Seq[int]) -> list[int]:
        """The tokens that follow `sequence`, from the rows behind it and behind each guess.

        Row index + i holds the logits after guess i - 1. It is looked at only if every guess
        before it was what is drawn, so penalties see the true history. `sequence` stays as it is.

        Returns:
            At least one token; all but the last equal the guesses.
        """
        length, tokens = len(sequence), [self.token(index, sequence)]
        try:
            for i, guess in enumerate(guesses):
                if tokens[-1] != guess:
                    break
                sequence.append(guess)
                tokens.append(self.token(index + i + 1, sequence))
        finally:
            sequence.rollback(length)
        return tokens


def _argmax(logits: torch.Tensor) -> tuple[list[int], list[bool]]:
    """Of each row the first largest logit, and whether that is a finite number."""
    if logits.dtype is torch.bfloat16 and logits.device.type == "cpu":
        bits = logits.contiguous().view(torch.int16).numpy()
        found, finite = np.empty(len(bits), np.int64), np.empty(len(bits), np.bool_)
        argmax_bf16(bits, found, finite)
    else:
        rows = logits.float().cpu().numpy()
        found = rows.argmax(-1)
        finite = np.isfinite(np.take_along_axis(rows, found[:, None], axis=1)[:, 0])
    return found.tolist(), finite.tolist()
