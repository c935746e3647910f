"""Two verifiers of one model, which are whole again before each run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from slipstream.bench.machine import cores
from slipstream.bench.reliability.fleet import Member, verifier
from slipstream.bench.reliability.settings import ReliabilitySettings


@dataclass(slots=True)
class Pair:
    """Both without a drafter and without guesses from the text: a token a step.

    Attributes:
        words: the command lines of both without options.
        options: that they run with now.
    """

    one: Member
    other: Member
    words: tuple[list[str], list[str]] = field(init=False)
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.words = (self.one.words, self.other.words)

    async def ready(self, options: Sequence[str] = ()) -> None:
        """Starts who has ended, or both where their options are others now.

        One after the other: a service measures its own speed when it starts. Raises as
        `Member.start`.
        """
        changed, self.options = tuple(options) != self.options, tuple(options)
        for member, words in zip((self.one, self.other), self.words, strict=True):
            if changed and member.running:
                await member.kill()
            if not member.running:
                await member.end()
                member.words = [*words, *self.options]
                await member.start()

    async def end(self) -> None:
        """Kills both: nothing of them is needed any more."""
        for member in (self.one, self.other):
            await member.kill()


def halves(cpus: Sequence[int]) -> tuple[list[int], list[int]]:
    """Cores of either: half of them each, or the only one for both."""
    half = (len(cpus) + 1) // 2
    return list(cpus[:half]), list(cpus[half:] or cpus[:half])


@asynccontextmanager
async def running_pair(
    settings: ReliabilitySettings, name: str = "verifier"
) -> AsyncIterator[Pair]:
    """Raises as `Member.start`."""
    first, second = halves(cores())
    plain = ("--ngram", "off")
    pair = Pair(
        verifier(settings, f"{name}-a", first, options=plain),
        verifier(settings, f"{name}-b", second, options=plain),
    )
    try:
        await pair.ready()
        yield pair
    finally:
        await pair.end()
