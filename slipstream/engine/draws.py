"""From a forward pass's logits to tokens: argmax of all rows at once, other rules by row."""

from __future__ import annotations

import torch

from slipstream.core.errors import InternalError
from slipstream.core.sampling import Logits
from slipstream.engine.sequence import Sequence


class Draws:
    """The logits of one forward pass, read by row.

    Args:
        logits: [rows, vocab], any dtype and device.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits
        best, tokens = logits.max(-1)
        self._argmax: list[int] = tokens.tolist()
        self._finite: list[bool] = best.isfinite().tolist()

    def row(self, index: int) -> Logits:
        """float32 [vocab] on the host."""
        row: Logits = self._logits[index].float().cpu().numpy()
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
