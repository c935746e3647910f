"""How many prompt rows a step may carry, so that those that decode beside them hardly notice."""

from __future__ import annotations

from collections.abc import Callable

from verifier_service.plan import LEAST_PROMPT_ROWS, StepPlan

# Share of a new step in the average: with its position a piece of a prompt becomes dearer from
# step to step, and the budget must follow.
_NEW = 0.3
# The same for a step without prompts: one is not like the next, with its drafts and its neighbours.
_NEW_CALM = 0.05


class PromptBudget:
    """Bounds how long decoding sequences wait for a step with prompts, by the same without.

    Where they have waited for drafts, prompts get their share of that time, too: it is all the same
    to whoever waits for the next tokens, and prompts would come too short. One owner.

    Args:
        cost: seconds of a step by rows, as last measured of steps that decode.
        waited: seconds from the last step to now.
        stretch: most times as long that it may take, from step to step, for the prompts.
    """

    def __init__(
        self, cost: Callable[[int], float], waited: Callable[[], float], stretch: float
    ) -> None:
        self._cost = cost
        self._waited = waited
        self._stretch = stretch
        # How much longer steps with prompts took than their rows let expect: attention over a long
        # context, and kernels that like one shape better than the other.
        self._dearer = 1.0
        # Of steps that only decoded, in the average: seconds, and sequences; none seen yet.
        self._calm_seconds = self._calm_sequences = 0.0

    def rows(self, sequences: int, decoding: int, left: int) -> int:
        """Rows for prompts beside `sequences` that decode with `decoding` rows, drafts included,
        where a step has `left` more.

        Alone a prompt takes them all, and it always gets enough to go on.
        """
        if not decoding:
            return left
        waited = self._waited()
        most = self._stretch * (waited + self._alone(sequences, decoding)) - waited
        low, high = min(left, LEAST_PROMPT_ROWS), left
        while low < high:
            middle = (low + high + 1) // 2
            if self._cost(decoding + middle) * self._dearer <= most:
                low = middle
            else:
                high = middle - 1
        return low

    def _alone(self, sequences: int, decoding: int) -> float:
        """Seconds of the step without prompts: what it costs, if that is not more than such steps
        took when there were some. While prompts are in every step nothing corrects a cost, and
        beside them drafts are cheap, so that there may be more of them."""
        cost = self._cost(decoding)
        if not self._calm_sequences:
            return cost
        more = self._cost(sequences) / self._cost(max(1, round(self._calm_sequences)))
        return min(cost, self._calm_seconds * more)

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """A step of `plan` took so long."""
        if plan.decode_rows and not plan.prompt_rows:
            new = _NEW_CALM if self._calm_sequences else 1.0
            self._calm_seconds += new * (seconds - self._calm_seconds)
            self._calm_sequences += new * (len(plan.work) - self._calm_sequences)
        if plan.prompt_rows and plan.decode_rows:
            ratio = seconds / self._cost(plan.rows)
            # One stalled step is not what prompts cost.
            ratio = min(max(ratio, 0.25), 4.0 * self._dearer)
            self._dearer += _NEW * (ratio - self._dearer)
