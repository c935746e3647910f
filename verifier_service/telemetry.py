"""What the engine's steps and requests took: told on its thread, in plain numbers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from slipstream.core.draft import Proposal
from slipstream.wire.telemetry.metrics import GAP, LATENCY, TOKENS, Tally
from slipstream.wire.telemetry.tracing import Span
from verifier_service.generation import Generation, Progress
from verifier_service.overlap import Overlap
from verifier_service.plan import Work

# What the rows of a step were: next tokens and drafts, pieces of prompts, or both.
KINDS = ("decode", "prefill", "mixed")


class Telemetry:
    """One for an engine, whose thread alone calls it; any thread may read.

    Attributes:
        wasted: drafts of the drafter that came to nothing: rejected by a step, stale when they
            arrived, or unused, as they were overtaken before a step had them.
        pre_hits, pre_misses: drafts that were on their way while a step decided their place that
            carried no draft of the sequence, and were right, or not; `post_hits`, `post_misses`,
            the same beside a step that did carry drafts.
        spans: of running requests that are traced, by number.
        last_step: when it began and ended, and how many sequences were in it.
    """

    def __init__(self) -> None:
        self.queued, self.prefill, self.decode = Tally(LATENCY), Tally(LATENCY), Tally(LATENCY)
        self.first_token, self.whole = Tally(LATENCY), Tally(LATENCY)
        self.gaps = Tally(GAP)
        self.finished: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0})
        self.errors: Counter[str] = Counter()
        self.steps = {kind: Tally(GAP) for kind in KINDS}
        self.rows = Tally(TOKENS)
        self.wasted = dict.fromkeys(("rejected", "stale", "unused"), 0)
        self.pre_hits = self.pre_misses = self.post_hits = self.post_misses = 0
        self.overlap = Overlap()
        self.spans: dict[int, Span] = {}
        self.last_step: tuple[float, float, int] = (0.0, 0.0, 0)

    # ---- requests --------------------------------------------------------------------------

    def started(self, generation: Generation) -> None:
        """It got a place; again, where it had lost the first one."""
        times = generation.request.times
        if times.started:
            return
        times.started, times.number = time.perf_counter(), generation.number
        self.queued.observe(times.queued)
        if times.span.recording:
            self.spans[generation.number] = times.span

    def decided(self, generation: Generation, pending: int, tokens: int, accepted: int) -> None:
        """A step gave it tokens.

        Args:
            pending: drafts that it had; the first `generation.drafted` of them were in the step.
            accepted: how many of the step's drafts were right.
        """
        times, now = generation.request.times, time.perf_counter()
        if times.first:
            self.gaps.observe((now - times.last) / tokens, tokens)
        else:
            times.first = now
            self.prefill.observe(times.prefill)
            self.first_token.observe(now - times.arrived)
        times.last = now
        if not generation.agreed:
            self.wasted["rejected"] += max(0, generation.drafted - accepted)
            self.wasted["unused"] += max(0, pending - generation.drafted)

    def ended(self, generation: Generation, progress: Progress) -> None:
        """Its last word was said."""
        times = generation.request.times
        self.spans.pop(generation.number, None)
        self.wasted["unused"] += generation.num_pending
        if progress.error is not None:
            self.errors[progress.error.code] += 1
            return
        reason = "abort" if progress.finish is None else progress.finish.value
        self.finished["abort" if reason == "cancelled" else reason] += 1
        if times.first:
            self.decode.observe(times.decode)
            self.whole.observe(time.perf_counter() - times.arrived)

    # ---- drafts and steps ------------------------------------------------------------------

    def proposed(self, generation: Generation, proposal: Proposal, *, kept: bool) -> None:
        """Drafts arrived; `kept` where they continue what is committed and pending."""
        length, start = len(generation.sequence), proposal.prefix.length
        if not kept:
            self.wasted["stale"] += len(proposal.tokens)
        if start >= length or not proposal.tokens:
            return
        # Made before the last commit was heard of: a step has decided their place meanwhile.
        if kept:
            hits = min(len(proposal.tokens), length - start)
            if generation.drafted:
                self.post_hits += hits
            else:
                self.pre_hits += hits
        elif generation.sequence.chain.names(proposal.prefix):
            # Those that follow a wrong one are stale, and no misses of their own.
            if generation.drafted:
                self.post_misses += 1
            else:
                self.pre_misses += 1

    def stepped(self, work: Sequence[Work], began: float, ended: float) -> None:
        """A step is over. Times are readings of time.perf_counter."""
        rows = decoding = 0
        for item in work:
            rows += len(item.segment.tokens)
            decoding += item.decodes
        kind = "decode" if decoding == len(work) else "mixed" if decoding else "prefill"
        self.steps[kind].observe(ended - began)
        self.rows.observe(rows)
        if decoding:
            self.overlap.stepped(began, ended)
