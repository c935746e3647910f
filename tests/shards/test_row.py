"""A row of shards drafts the tokens of the drafter in one piece, whatever the timing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drafter_service.draft import Draft
from drafter_service.guesses import Assist
from slipstream.core.draft import Close
from slipstream.core.errors import InvalidRequest
from slipstream.core.params import SamplingParams
from slipstream.wire.proto import drafter_pb2, shard_pb2
from tests.drafter.rig import DrafterRig, opening
from tests.golden.families import VOCAB
from tests.shards.rig import RowRig

GREEDY = SamplingParams(temperature=0.0)
PENALTIES = SamplingParams(
    temperature=1.0,
    top_p=0.95,
    repetition_penalty=1.3,
    presence_penalty=0.7,
    frequency_penalty=0.2,
    logit_bias={5: 1.5},
    seed=5,
)
BOTH = pytest.mark.parametrize("params", [GREEDY, PENALTIES], ids=["greedy", "penalties"])


def prompt(number: int, length: int) -> tuple[int, ...]:
    return tuple((3 + number * 7 + i * (number + 1)) % VOCAB for i in range(length))


def drafted(rig: DrafterRig, count: int) -> list[list[int]]:
    rig.run()
    return [rig.ahead(i) for i in range(count)]


@BOTH
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("shards", [2, 3, 4])
def test_the_same_drafts(parts, whole, shards, count, params) -> None:
    """One to four sequences, long prompts and short ones: drafts of the unsharded drafter."""
    commands = [
        opening(prompt(i, (5, 300, 17, 40)[i]), params, sequence_id=i, max_length=400)
        for i in range(count)
    ]
    one, row = DrafterRig(whole), RowRig(parts(shards), depth=shards)
    one.obey(*commands)
    row.obey(*commands)
    expected = drafted(one, count)
    assert drafted(row, count) == expected
    assert all(len(drafts) == 8 for drafts in expected)
    for rig in (one, row):
        rig.close_all()
    row.check_empty()


@pytest.mark.parametrize("options", [{"ngram": "on"}, {"early_stop": "on"}])
def test_guesses_and_confidence_travel(parts, whole, options) -> None:
    """With n-gram guesses, and with early stops: what the unsharded drafter drafts, as it does."""
    text = (*prompt(1, 30), *prompt(1, 30), *prompt(1, 12))
    one, row = DrafterRig(whole, **options), RowRig(parts(2), 2, **options)
    for rig in (one, row):
        rig.obey(*(opening(text[i:], GREEDY, sequence_id=i, window=30) for i in range(3)))
    assert drafted(row, 3) == drafted(one, 3)
    ours, theirs = row.engine.counters, one.engine.counters
    assert ours.guessed_tokens + ours.early_stops > 0
    assert ours.early_stops == theirs.early_stops
    for rig in (one, row):
        rig.close_all()


class _Oracle(Assist):
    """Guesses that are right up to a random place."""

    def __init__(self, right: list[int], start: int, seed: int) -> None:
        super().__init__(automatic=False)
        self._right, self._start, self._random = right, start, random.Random(seed)

    def choose(self, ready: Sequence[Draft], rows: int) -> list[tuple[int, ...]]:
        return [self._for(draft) for draft in ready]

    def _for(self, draft: Draft) -> tuple[int, ...]:
        at = len(draft.sequence) - self._start
        guesses = self._right[at : at + min(self._random.randint(0, 4), draft.room - 1)]
        if draft.sequence.todo > draft.window + 1 or not guesses:
            return ()
        if self._random.random() < 0.5:
            guesses[self._random.randrange(len(guesses))] = 3
        return tuple(guesses)


@BOTH
@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_guesses_right_and_wrong(parts, whole, shards, seed, params) -> None:
    """Guesses that are kept, or kept in part, leave every shard where the drafter is."""
    text, one = prompt(2, 20), DrafterRig(whole)
    one.obey(opening(text, params, window=50, max_length=200))
    one.run()
    right = one.ahead()
    one.close_all()
    row = RowRig(parts(shards), depth=2, assist=_Oracle(right, len(text), seed))
    row.obey(opening(text, params, window=9, max_length=200))
    told = 0
    while told < 40:
        row.run()
        assert row.ahead() == right[told : told + 9]
        row.obey(row.commit([*text, *right[:told]], *right[told : told + 4]))
        told += 4
    assert row.engine.counters.right_guesses > 5
    row.close_all()


@dataclass(frozen=True, slots=True)
class Tick:
    """What happens between two commits.

    Attributes:
        moves: -1 is a step of shard 0, another number moves one message over that hop.
        which: the sequence that hears of a commit.
        agreeing: how many of its drafts are right.
        own: how many tokens come that it has not drafted.
        close: whether it is closed instead, and another one opened.
    """

    moves: tuple[int, ...]
    which: int
    agreeing: int
    own: int
    close: bool


ticks = st.lists(
    st.builds(
        Tick,
        moves=st.lists(st.integers(-1, 3), max_size=25).map(tuple),
        which=st.integers(0, 3),
        agreeing=st.integers(0, 9),
        own=st.integers(0, 3),
        close=st.sampled_from([False] * 5 + [True]),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    script=ticks,
    count=st.integers(1, 4),
    shards=st.integers(2, 4),
    depth=st.integers(1, 5),
    params=st.sampled_from([GREEDY, PENALTIES]),
    ngram=st.sampled_from(["off", "on"]),
)
def test_commits_while_passes_are_under_way(
    parts, whole, script, count, shards, depth, params, ngram
) -> None:
    """Commits, rollbacks and closes between any two messages: in the end the drafts are those of an
    unsharded drafter that was opened on the same history, and nothing is left on any shard."""
    row = RowRig(parts(shards), depth, ngram=ngram)
    history = [list(prompt(i, 1 + 20 * i)) for i in range(count)]
    prompts = [len(tokens) for tokens in history]
    for i, tokens in enumerate(history):
        row.obey(opening(tokens, params, sequence_id=i, max_length=200))
    row.step()
    for tick in script:
        for move in tick.moves:
            if move < 0:
                row.step()
            elif move < shards:
                row.move(move)
        row.step()
        i = tick.which % count
        if tick.close:
            row.obey(Close(i))
            history[i] = history[i][: prompts[i]]
            row.obey(opening(history[i], params, sequence_id=i, max_length=200))
            continue
        ahead = row.ahead(i)
        right = ahead[: tick.agreeing]
        wrong = [(token + 1) % VOCAB for token in ahead[len(right) : len(right) + 1]]
        decided = [*right, *wrong, *range(3, 3 + tick.own)] or [7]
        row.obey(row.commit(history[i], *decided, sequence_id=i))
        history[i] += decided
    got = drafted(row, count)
    assert row.refusals() == []
    row.close_all()
    row.run()
    row.check_empty()

    one = DrafterRig(whole)
    for i, tokens in enumerate(history):
        one.obey(opening(tokens, params, sequence_id=i, num_prompt=prompts[i], max_length=200))
    assert got == drafted(one, count)
    one.close_all()


def test_sequences_share_out_over_the_shards(parts) -> None:
    """Four sequences on two shards: two passes of two are under way nearly all the time."""
    row = RowRig(parts(2), depth=2)
    row.obey(
        *(opening(prompt(i, 10), GREEDY, sequence_id=i, window=50, max_length=90) for i in range(4))
    )
    row.run()
    counters = row.stage.counters
    assert all(len(row.ahead(i)) == 50 for i in range(4))
    assert counters.overlapped > 0.9 * counters.passes
    # Passes of two, but for the four prompts, one a pass, and the ends.
    assert 100 <= counters.passes <= 108
    row.close_all()


def test_one_sequence_never_has_two_passes_under_way(parts) -> None:
    """The next row of a sequence is drawn from the one before: nothing overlaps."""
    row = RowRig(parts(2), depth=4)
    row.obey(opening(prompt(0, 10), GREEDY))
    row.run()
    assert row.stage.counters.overlapped == 0
    row.close_all()


@BOTH
def test_a_lost_shard_loses_the_sequences_and_no_more(parts, whole, params) -> None:
    """A cut with passes under way refuses what was open; a new row drafts the same again."""
    row = RowRig(parts(3), depth=3)
    commands = [opening(prompt(i, 20), params, sequence_id=i) for i in range(3)]
    row.obey(*commands)
    for _ in range(3):
        row.step()
    row.move(0)
    assert row.engine._under_way == 3
    row.cut()
    row.run()
    assert sorted(refusal.sequence_id for refusal in row.refusals()) == [0, 1, 2]
    assert row.engine.num_open == row.engine._under_way == row.runner.pool.num_used == 0
    row.check_empty()
    # What is opened while there is no row waits for one.
    row.obey(*commands)
    row.run()
    assert drafted(row, 3) == [[], [], []]
    row.connect()
    one = DrafterRig(whole)
    one.obey(*commands)
    assert drafted(row, 3) == drafted(one, 3)
    row.close_all()
    one.close_all()


def test_a_shard_that_cannot_compute_fails_the_pass_alone(parts, monkeypatch) -> None:
    """An error in a later shard gives up the sequences of that pass, with the reason."""
    row = RowRig(parts(3), depth=1)
    row.obey(opening(prompt(0, 10), GREEDY))
    row.run()
    middle = row.shards[0].runner
    monkeypatch.setattr(middle, "forward", lambda *_: 1 / 0)
    row.obey(opening(prompt(1, 10), GREEDY, sequence_id=2))
    row.run()
    (refusal,) = row.refusals()
    assert refusal.sequence_id == 2
    assert "shard 1 failed" in refusal.reason
    monkeypatch.undo()
    row.obey(opening(prompt(1, 10), GREEDY, sequence_id=3))
    row.run()
    assert len(row.ahead(1)) == len(row.ahead(3)) == 8
    row.close_all()
    row.run()
    row.check_empty()


def _rows(**fields: object) -> shard_pb2.PassRows:
    return shard_pb2.PassRows(
        **{"sequence_id": 1, "position": 0, "token_ids": [3, 4], "num_logits": 1} | fields
    )


@pytest.mark.parametrize(
    ("rows", "hidden"),
    [
        (_rows(sequence_id=9), 2),
        (_rows(position=7), 2),
        (_rows(token_ids=[4, 4]), 2),
        (_rows(token_ids=[3, VOCAB]), 2),
        (_rows(token_ids=[3, 4] * 20), 40),
        (_rows(token_ids=[]), 0),
        (_rows(num_logits=2), 2),
        (_rows(num_guesses=2, num_logits=3), 2),
        (_rows(num_guesses=1, num_logits=2), 2),
        (_rows(token_ids=[3], num_logits=1), 1),
        (_rows(), 3),
        (_rows(), 1.5),
    ],
)
def test_rows_that_make_no_sense(parts, rows, hidden) -> None:
    """Passes that no shard 0 sends end the stream with InvalidRequest; the next one is served."""
    row = RowRig(parts(2), depth=1)
    (shard,), (stream,) = row.shards, row.streams
    opened = drafter_pb2.OpenSequence(
        sequence_id=1, token_ids=[3, 4], num_prompt_tokens=2, max_length=20
    )
    size = shard.runner.loaded.config.hidden_size * 4
    message = shard_pb2.Pass(number=1, rows=[rows], hidden=bytes(int(size * hidden)))
    shard.obey(stream, shard_pb2.RunRequest(open=opened))
    shard.obey(stream, shard_pb2.RunRequest(forward=message))
    shard.step()
    (failure,) = row.failures
    assert isinstance(failure, InvalidRequest)
    row.check_empty()
    row.failures.clear()
    row.connect()
    row.obey(opening(prompt(0, 10), GREEDY))
    row.run()
    assert len(row.ahead()) == 8
    row.close_all()
