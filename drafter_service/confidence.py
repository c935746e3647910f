"""Stopping early: no more drafts behind one that the drafter itself does not believe in.

The rule of Draft & Verify (Zhang et al., arXiv 2309.08168, section 3.4): drafting stops behind a
token whose probability is below a threshold, and the threshold follows the share of drafts that
the verifier accepts, so that neither has to be tuned to a model or a text.
"""

from __future__ import annotations

from typing import Literal

from drafter_service.draft import Draft, Part
from drafter_service.stage import Drawn
from slipstream.core.draft import Commit

Stopping = Literal["off", "on", "auto"]
# As published: the share of accepted drafts to hold, and how much of the past the two averages
# keep at each commit.
_TARGET = 0.9
_KEEP_SHARE = 0.5
_KEEP_THRESHOLD = 0.9
# The published step of 0.01 moves the threshold by a thousandth a commit, over hundreds of them
# through a run of one kind of text. Answers are shorter than that: this one moves it by 0.03.
_STEP = 0.3
_START = 0.3
# How much an ended sequence's threshold counts for where the next one starts.
_CARRY = 0.25
# Never so high that a token which is nearly certain ends a draft.
_HIGHEST = 0.95


class Threshold:
    """The least probability behind which drafting goes on, for one sequence.

    With v the share of a commit's drafts that were accepted, s its average and g the threshold:
    s <- 0.5 s + 0.5 v; g' = g + step where s < 0.9, else g - step; g <- 0.9 g + 0.1 g'.
    """

    __slots__ = ("_share", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self._share = _TARGET

    def update(self, accepted: int, drafted: int) -> None:
        """Of `drafted` drafts that a commit decided or made worthless, `accepted` were right."""
        if not drafted:
            return
        self._share += (1 - _KEEP_SHARE) * (accepted / drafted - self._share)
        step = _STEP if self._share < _TARGET else -_STEP
        moved = self.value + (1 - _KEEP_THRESHOLD) * step
        self.value = min(max(moved, 0.0), _HIGHEST)


class EarlyStop(Part):
    """Decides when a sequence is not drafted on before the verifier has spoken.

    Args:
        automatic: only where a draft in vain takes time from something else: from the verifier, or
            from another sequence. On a device of its own it costs nothing.
    """

    def __init__(self, *, automatic: bool) -> None:
        self._automatic = automatic
        self._thresholds: dict[Draft, Threshold] = {}
        self._usual = _START

    def opened(self, draft: Draft) -> None:
        self._thresholds[draft] = Threshold(self._usual)

    def closed(self, draft: Draft) -> None:
        reached = self._thresholds.pop(draft).value
        self._usual += _CARRY * (reached - self._usual)

    def committed(self, draft: Draft, command: Commit, lost: int) -> None:  # noqa: ARG002 a hook
        self._thresholds[draft].update(draft.agreed, draft.agreed + lost)

    def applies(self, *, shared: bool) -> bool:
        """Whether to ask for confidences.

        Args:
            shared: the drafter shares its device with the verifier.
        """
        return not self._automatic or shared or len(self._thresholds) > 1

    def doubts(self, draft: Draft, drawn: Drawn) -> bool:
        """Whether one of the tokens drawn is too unlikely to go on behind it.

        The token itself is kept: it is there, and to verify it costs little.
        """
        threshold = self._thresholds[draft].value
        return any(confidence < threshold for confidence in drawn.confidence)


def make_early_stop(setting: Stopping) -> EarlyStop | None:
    return None if setting == "off" else EarlyStop(automatic=setting == "auto")
