"""Whether a server's answers are what speculation promises: the same in every way of asking."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from slipstream.cli.client import Answer, ChatClient
from slipstream.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotAuthenticated,
    Unavailable,
)

# Completions, as every model has them; a chat needs a template. Several, because in fast exactness
# a near-tie may fall differently: it does not in all of them, and a fault of the server's does.
PROMPTS = (
    "The three most important things to know about the sea are",
    "A short history of bread: in the beginning, people",
    "To repair a bicycle tyre, first",
)
_PATH = "/v1/completions"
_PAUSE_SECONDS = 1.0
_SHOWN = 24


@dataclass(frozen=True, slots=True)
class Way:
    """One way to ask for an answer."""

    streamed: bool
    speculative: bool

    def __str__(self) -> str:
        drafts = "with speculation" if self.speculative else "without speculation"
        return f"{'streamed' if self.streamed else 'whole'} {drafts}"


# The first is what the others must equal: the plainest there is.
WAYS = tuple(
    Way(streamed, speculative) for speculative in (False, True) for streamed in (False, True)
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a round of answers is asked with."""

    name: str
    fields: dict[str, Any]


SAMPLINGS = (
    Sampling("greedy", {"temperature": 0}),
    Sampling("temperature 1, seed 20", {"temperature": 1, "seed": 20}),
)


@dataclass(slots=True)
class Drafts:
    """What was verified in all answers with speculation; None: not told."""

    own: int = 0
    accepted: int = 0
    guesses: int = 0
    told: bool = False

    def add(self, block: dict[str, Any]) -> None:
        """Takes a `metrics.speculative_decoding`."""
        names = ("num_draft_tokens", "num_accepted_tokens", "num_guess_tokens")
        drafted, accepted, guesses = (block.get(name) for name in names)
        if drafted is None or accepted is None or guesses is None:
            return
        self.told = True
        self.own += drafted - guesses
        self.accepted += accepted - block.get("num_accepted_guess_tokens", 0)
        self.guesses += guesses


class Wrong(Exception):
    """A check failed; the text says how."""


@dataclass(slots=True)
class GenerationCheck:
    """Asks one server.

    Args:
        model: name that requests carry.
        deadline: `time.monotonic()` at which the last wait ends.
        max_tokens: of each answer.
        fast: near-ties may fall differently, as every verifier's exactness is "fast".
    """

    client: ChatClient
    model: str
    deadline: float
    max_tokens: int = 32
    fast: bool = False
    note: Callable[[str], None] = lambda _: None
    drafts: Drafts = field(default_factory=Drafts)

    def equal(self, sampling: Sampling) -> str:
        """All ways give one answer. Returns what was found.

        Raises:
            Wrong: they do not.
            SlipstreamError: there was no answer.
        """
        for prompt in PROMPTS if self.fast else PROMPTS[:1]:
            answers = [self._ask(prompt, sampling, way) for way in WAYS]
            different = difference(WAYS, answers)
            if not different:
                return (
                    f"{len(WAYS)} answers of {answers[0].tokens} tokens are equal, streamed and "
                    "whole, with speculation and without"
                )
            if self.fast:
                self.note(
                    f"{sampling.name}: {different}; exactness is fast, so it may be a near-tie"
                )
        raise Wrong(different)

    def expect_drafts(self) -> str:
        """The drafter's own drafts were verified, in the answers so far or in further ones.

        Raises:
            Wrong: there were none until the deadline.
        """
        prompts = self._prompts()
        while not self.drafts.own and self._left() > _PAUSE_SECONDS:
            self._ask(next(prompts), SAMPLINGS[0], Way(streamed=False, speculative=True))
            if not self.drafts.own:
                time.sleep(_PAUSE_SECONDS)
        drafts = self.drafts
        if drafts.own:
            return (
                f"{drafts.own} drafts of the drafter's were verified, {drafts.accepted} of them "
                f"accepted, beside {drafts.guesses} n-gram guesses"
            )
        if not drafts.told:
            raise Wrong("the server does not tell how many drafts there were: it may be older")
        told = (self.client.ready() or {}).get("drafter") or {}
        state = "a drafter is connected" if told.get("connected") else "no drafter is connected"
        detail = f" ({told['detail']})" if told.get("detail") else ""
        raise Wrong(
            f"no draft of the drafter's was verified: {state}{detail}. Look at the drafter's pods "
            "and the verifiers' --drafter option; where drafts are not worth their time the "
            "verifier asks for none"
        )

    def _prompts(self) -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield f"{PROMPTS[number % len(PROMPTS)]} number {number}"

    def _ask(self, prompt: str, sampling: Sampling, way: Way) -> Answer:
        """Again while the server is not there or has no room, until the deadline."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "speculative": way.speculative,
            **sampling.fields,
        }
        if self._left() <= 0:
            raise Wrong("the time (--timeout) was over before this was asked: the server is slow")
        told = ""
        while True:
            answer = Answer()
            try:
                if way.streamed:
                    answer.text = "".join(self.client.stream(body, answer, _PATH))
                else:
                    answer.text = self.client.whole(body, answer, _PATH)
                break
            except Unavailable as failure:
                if self._left() <= _PAUSE_SECONDS:
                    raise
                if failure.message != told:
                    told = failure.message
                    self.note(f"asked again: {told}")
                time.sleep(_PAUSE_SECONDS)
        self._look_at(answer, way)
        return answer

    def _look_at(self, answer: Answer, way: Way) -> None:
        """Raises Wrong where an answer is none, or had drafts that were not asked for."""
        if not answer.tokens or answer.finish_reason is None:
            raise Wrong(
                f"{way}: an answer of {answer.tokens or 0} tokens with finish reason "
                f"{answer.finish_reason}"
            )
        if way.speculative:
            self.drafts.add(answer.speculation)
        elif steps := answer.speculation.get("num_spec_steps"):
            raise Wrong(f"{way}: {steps} steps carried drafts all the same")

    def _left(self) -> float:
        return self.deadline - time.monotonic()


def difference(ways: Sequence[Way], answers: Sequence[Answer]) -> str:
    """How the first answer that is not like the first one differs from it; empty: none does."""
    first = answers[0]
    for way, answer in zip(ways[1:], answers[1:], strict=True):
        pair = f"{way} is not what {ways[0]} is"
        if answer.text != first.text:
            both = zip(first.text, answer.text, strict=False)
            shortest = min(len(first.text), len(answer.text))
            at = next((place for place, (a, b) in enumerate(both) if a != b), shortest)
            texts = (repr(one.text[at : at + _SHOWN]) for one in (answer, first))
            return f"{pair}: from character {at} on {' against '.join(texts)}"
        if answer.tokens != first.tokens:
            return f"{pair}: {answer.tokens} tokens against {first.tokens}"
        if answer.finish_reason != first.finish_reason:
            return f"{pair}: it ended by {answer.finish_reason}, not {first.finish_reason}"
    return ""


def until_ready(client: ChatClient, deadline: float) -> dict[str, Any] | None:
    """What `/ready` says once it is ready; None where there is no such page.

    Raises:
        DeadlineExceeded: it was not, with what is missing.
        NotAuthenticated, ModelNotFound, InvalidRequest: waiting will not help.
    """
    missing = ""
    while True:
        try:
            told = client.ready()
            if told is None or told.get("ready"):
                return told
            missing = ", ".join(told.get("missing") or ["it does not say what"])
        except (NotAuthenticated, ModelNotFound, InvalidRequest):
            raise
        except (Unavailable, DeadlineExceeded) as failure:
            missing = failure.message
        if deadline - time.monotonic() <= _PAUSE_SECONDS:
            raise DeadlineExceeded(f"the server did not become ready: {missing}")
        time.sleep(_PAUSE_SECONDS)
