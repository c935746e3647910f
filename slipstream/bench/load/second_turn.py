"""A chat's second turn repeats its history: what does its first token cost?"""

from __future__ import annotations

from statistics import median

from slipstream.bench.bars import Bar
from slipstream.bench.configurations import Progress
from slipstream.bench.load.asks import Extras
from slipstream.bench.load.drive import in_turn
from slipstream.bench.load.outcomes import Outcome
from slipstream.bench.load.serve import (
    Findings,
    ServeSettings,
    answers_of,
    fault_bar,
    leak_bar,
    leak_checks,
    started,
)
from slipstream.bench.load.workload import long_dialogues

_HISTORY_TOKENS = 1500
_CHATS = 4
_ANSWER_TOKENS = (32, 16)
_MOST_OF_THE_FIRST = 0.25


async def second_turn(
    settings: ServeSettings, progress: Progress
) -> tuple[Findings, list[Outcome]]:
    """Chats of two turns, one after the other, the first with 1,500 tokens.

    Raises:
        SlipstreamError: the stack did not start, or could not tell the known answers.
    """
    dialogues = long_dialogues(settings.model, _HISTORY_TOKENS, _CHATS, _ANSWER_TOKENS)
    outcomes: list[Outcome] = []
    async with started(settings, "second-turn", (), progress) as stack:
        book = await answers_of(stack, dialogues, settings, progress)
        async with leak_checks(progress, stack) as left:
            for repeat in range(max(2, settings.repeats)):
                progress(f"repeat {repeat + 1}")
                for chat in book.dialogues:
                    outcomes += await in_turn(stack.door, chat, Extras(cache_salt=f"turn {repeat}"))
    times = {turn: _ttfts(outcomes, turn) for turn in ("/0", "/1")}
    first, second = (median(each) if each else None for each in times.values())
    ratio = second / first if first and second is not None else None
    bar = Bar("TTFT of a second turn / of the first", ratio, _MOST_OF_THE_FIRST, at_least=False)
    seconds = [each for each in outcomes if each.name.endswith("/1")]
    cached = sum(each.cached_tokens for each in seconds)
    prompt = sum(each.prompt_tokens for each in seconds)
    details = {
        "ttft_first": times["/0"],
        "ttft_second": times["/1"],
        "cached_share_of_second_prompts": cached / prompt if prompt else None,
    }
    line = (
        f"median TTFT: first turn {_ms(first)}, second turn {_ms(second)}, of whose prompts "
        f"{cached} of {prompt} tokens were cached"
    )
    bars = (bar, leak_bar(left), fault_bar(outcomes))
    return Findings("second-turn", bars, details, (line,)), outcomes


def _ttfts(outcomes: list[Outcome], turn: str) -> list[float]:
    return [o.ttft for o in outcomes if o.name.endswith(turn) and o.ttft is not None]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"
