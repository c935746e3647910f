"""The drafter by itself: how it runs ahead, takes over commits, and frees what it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.core.draft import Close, Commit
from slipstream.core.params import SamplingParams
from slipstream.core.prefix import Prefix, PrefixChain, salted
from slipstream.wire.draft_codec import command_from_proto, command_to_proto
from tests.drafter.rig import DrafterRig, opening
from tests.verifier.rig import GREEDY, VOCAB

PROMPT = tuple(range(10, 30))
PENALTIES = SamplingParams(
    temperature=1.0, top_p=0.9, repetition_penalty=1.3, presence_penalty=0.7, seed=5
)


def wrong(token: int) -> int:
    return (token + 1) % VOCAB


def test_runs_ahead_by_its_window(runner) -> None:
    """It proposes each token once, in order, named by what it continues; then it waits."""
    rig = DrafterRig(runner)
    rig.obey(opening(PROMPT, PENALTIES, window=5))
    rig.run()
    ahead = rig.ahead()
    assert len(ahead) == 5
    history = list(PROMPT)
    for (connection, (proposal,), refusals), token in zip(rig.sent, ahead, strict=True):
        assert (connection, refusals, proposal.tokens) == (1, [], (token,))
        assert proposal.prefix == rig.chain(history).at(len(history))
        history.append(token)
    assert rig.engine.counters.drafted_tokens == 5
    rig.close_all()


def test_a_cache_salt_is_part_of_every_name(runner) -> None:
    """A salted sequence is drafted for as any other, under names that nobody else has; the salt
    crosses the wire."""
    rig = DrafterRig(runner)
    command = replace(opening(PROMPT, PENALTIES, window=3), cache_salt="tenant")
    rig.obey(command_from_proto(command_to_proto(command)))
    rig.run()
    ahead = tuple(rig.ahead())
    names = [p.prefix for _, proposals, _ in rig.sent for p in proposals]
    chain = PrefixChain(salted(runner.loaded.fingerprint, "tenant"), (*PROMPT, *ahead))
    assert names == [chain.at(len(PROMPT) + i) for i in range(3)]
    rig.obey(Commit(1, chain.at(len(PROMPT)), ahead))
    assert rig.refusals() == []
    rig.obey(opening(PROMPT, PENALTIES, window=3, sequence_id=2))
    rig.run()
    assert tuple(rig.ahead(2)) == ahead
    rig.obey(Commit(2, chain.at(len(PROMPT)), ahead))
    rig.run()
    assert [refusal.sequence_id for refusal in rig.refusals()] == [2]
    rig.close_all()


@pytest.mark.parametrize(("room", "drafts"), [(1, 0), (2, 1), (5, 4), (50, 8)])
def test_stops_at_the_maximum_length(runner, room, drafts) -> None:
    """It drafts nothing that could not be accepted: the last token is the verifier's own."""
    rig = DrafterRig(runner)
    rig.obey(opening(PROMPT, GREEDY, max_length=len(PROMPT) + room))
    rig.run()
    assert len(rig.ahead()) == drafts
    rig.close_all()


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    commits=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=6
    ),
    params=st.sampled_from([GREEDY, PENALTIES]),
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
)
def test_commits_leave_the_state_of_a_fresh_drafter(
    drafter_runner, commits, params, prompt
) -> None:
    """However commits agree, contradict or overlap its drafts: tokens, KV and what it drafts next
    are those of a drafter that was opened on the same history."""
    rig = DrafterRig(drafter_runner)
    rig.obey(opening(prompt, params, max_length=200))
    history = list(prompt)
    for agreeing, own, steps in commits:
        for _ in range(steps):
            rig.step()
        right = rig.ahead()[:agreeing] if rig.engine.num_open else []
        follow = rig.ahead()[len(right) : len(right) + 1] if rig.engine.num_open else []
        decided = [*right, *(wrong(t) for t in follow), *range(own)] or [7]
        rig.obey(rig.commit(history, *decided))
        history += decided
    rig.run()
    assert rig.refusals() == []
    tokens, kv = list(rig.draft().sequence.tokens), rig.kv()
    rig.close_all()

    fresh = DrafterRig(drafter_runner)
    fresh.obey(opening(history, params, num_prompt=len(prompt), max_length=200))
    fresh.run()
    assert tokens[: len(history)] == history
    assert tokens == fresh.draft().sequence.tokens
    assert len(fresh.ahead()) == 8
    torch.testing.assert_close(kv, fresh.kv(), rtol=1e-4, atol=1e-4)
    fresh.close_all()


@pytest.mark.parametrize(
    ("agree", "more", "kept", "lost"),
    [(8, 0, 0, 0), (3, 0, 5, 0), (0, 1, 0, 8), (3, 1, 0, 5), (8, 2, 0, 0), (1, 4, 0, 7)],
)
def test_what_a_commit_keeps(runner, agree, more, kept, lost) -> None:
    """Drafts that agree stay, the others are counted as rolled back."""
    rig = DrafterRig(runner)
    rig.obey(opening(PROMPT, PENALTIES))
    rig.run()
    drafts = rig.ahead()
    decided = [*drafts[:agree], *(wrong(t) for t in (drafts[agree:] or [1, 1])[:1] * more)]
    rig.obey(rig.commit(PROMPT, *decided))
    rig.engine._inbox.popleft()()
    assert rig.ahead() == drafts[agree : agree + kept]
    assert rig.engine.counters.rolled_back_tokens == lost
    rig.run()
    assert len(rig.ahead()) == 8
    rig.close_all()


@pytest.mark.parametrize(
    "prefix",
    [
        lambda rig: rig.chain(PROMPT[:-1]).at(19),  # shorter than what is committed
        lambda rig: rig.chain((*PROMPT, *rig.ahead()[:1])).at(21),  # a draft, not committed
        lambda rig: rig.chain((*PROMPT[:-1], 1)).at(20),  # another history
        lambda _: Prefix(20, bytes(16)),
        lambda _: Prefix(2**31, bytes(16)),
    ],
)
def test_commit_of_an_unknown_prefix(runner, prefix) -> None:
    """A commit that does not continue what is committed gives the sequence up, with the reason."""
    rig = DrafterRig(runner)
    rig.obey(opening(PROMPT, GREEDY), opening(PROMPT, GREEDY, sequence_id=2))
    rig.run()
    rig.obey(Commit(1, prefix(rig), (3,)))
    rig.run()
    (refusal,) = rig.refusals()
    assert refusal.sequence_id == 1
    assert "prefix" in refusal.reason
    assert rig.engine.num_open == 1
    assert len(rig.ahead(2)) == 8
    rig.obey(rig.commit(PROMPT, 3), Close(1))  # both come too late, and do nothing
    rig.close_all()


@pytest.mark.parametrize(
    "command",
    [
        opening((1, VOCAB), GREEDY),
        opening((1, 2), SamplingParams(logit_bias={VOCAB: 1.0})),
        opening((1, 2), GREEDY, max_length=16 * 41),
    ],
)
def test_sequences_that_cannot_be_drafted(runner, command) -> None:
    """What would fail a forward pass or never fit is refused, and the others draft on."""
    rig = DrafterRig(runner)
    rig.obey(opening(PROMPT, GREEDY, sequence_id=2), command)
    rig.run()
    assert [refusal.sequence_id for refusal in rig.refusals()] == [1]
    assert len(rig.ahead(2)) == 8
    rig.close_all()


def test_commit_beyond_the_vocabulary(runner) -> None:
    """A token that does not exist gives up its sequence alone."""
    rig = DrafterRig(runner)
    rig.obey(opening(PROMPT, GREEDY), opening(PROMPT, GREEDY, sequence_id=2))
    rig.obey(rig.commit(PROMPT, VOCAB))
    rig.run()
    assert [refusal.sequence_id for refusal in rig.refusals()] == [1]
    assert len(rig.ahead(2)) == 8
    rig.close_all()


def test_too_many_sequences(runner) -> None:
    """Beyond the most sequences it refuses; a place given back can be taken again."""
    rig = DrafterRig(runner, max_sequences=2)
    rig.obey(*(opening(PROMPT, GREEDY, sequence_id=i, max_length=40) for i in (1, 2, 3)))
    rig.run()
    assert [refusal.sequence_id for refusal in rig.refusals()] == [3]
    rig.obey(Close(1), opening(PROMPT, GREEDY, sequence_id=4, max_length=40))
    rig.run()
    assert len(rig.ahead(4)) == 8
    assert len(rig.refusals()) == 1
    rig.close_all()


def test_sequences_wait_for_memory(runner) -> None:
    """Without room in the pool a sequence waits, follows its commits, and drafts once there is."""
    rig = DrafterRig(runner)
    long = [t % VOCAB for t in range(250)]  # 17 blocks with its drafts, of 40
    for number, tokens in ((1, long), (2, long[::-1]), (3, [*long[100:], *long[:100]])):
        rig.obey(opening(tokens, GREEDY, sequence_id=number, max_length=300))
    rig.run()
    assert [len(rig.ahead(i)) for i in (1, 2, 3)] == [8, 8, 0]
    rig.obey(rig.commit(tokens, 5, 6, sequence_id=3))
    rig.run()
    assert rig.ahead(3) == []
    rig.obey(Close(1))
    rig.run()
    assert len(rig.ahead(3)) == 8
    assert rig.draft(3).sequence.tokens[:252] == [*tokens, 5, 6]
    assert rig.refusals() == []
    rig.close_all()


def test_disconnect_frees_one_verifiers_sequences(runner) -> None:
    """A verifier that leaves takes its own sequences along; equal numbers of another one stay."""
    rig = DrafterRig(runner)
    rig.obey(opening(PROMPT, GREEDY), opening(PROMPT, GREEDY, sequence_id=2))
    rig.obey(opening(PROMPT, PENALTIES), connection=2)
    rig.run()
    mine = {proposal.sequence_id for n, batch, _ in rig.sent if n == 2 for proposal in batch}
    assert mine == {1}
    rig.engine.disconnect(1)
    rig.run()
    assert rig.engine.num_open == 1
    assert len(rig.ahead(1, connection=2)) == 8
    rig.engine.disconnect(2)
    rig.engine.disconnect(3)
    rig.run()
    assert (rig.engine.num_open, runner.pool.num_used) == (0, 0)


def test_opening_again_starts_over(runner) -> None:
    """An Open for a number in use replaces it and frees the old one's memory."""
    rig = DrafterRig(runner)
    rig.obey(opening(PROMPT, GREEDY))
    rig.run()
    assert runner.pool.num_used == 2
    rig.obey(opening(PROMPT[:5], GREEDY))
    rig.run()
    assert (rig.engine.num_open, runner.pool.num_used) == (1, 1)
    assert rig.draft().sequence.tokens[:5] == list(PROMPT[:5])
    rig.close_all()


def test_failing_forward(runner, monkeypatch) -> None:
    """A forward pass that raises gives up the sequences in it and frees them; later ones work."""
    rig = DrafterRig(runner)
    forward = runner.forward
    monkeypatch.setattr(runner, "forward", lambda _: 1 / 0)
    rig.obey(opening(PROMPT, GREEDY), opening(PROMPT, GREEDY, sequence_id=2))
    rig.step()
    # One prompt a step: the second one is still to come, and fails by itself.
    rig.step()
    assert sorted(refusal.sequence_id for refusal in rig.refusals()) == [1, 2]
    assert runner.pool.num_used == 0
    monkeypatch.setattr(runner, "forward", forward)
    rig.obey(opening(PROMPT, GREEDY, sequence_id=3))
    rig.run()
    assert len(rig.ahead(3)) == 8
    rig.close_all()


def test_numbers_that_are_none(runner, monkeypatch) -> None:
    """Logits that are not finite give up that sequence; the one beside it drafts the same."""
    rig = DrafterRig(runner)
    rig.obey(opening(PROMPT, PENALTIES))
    rig.run()
    expected = rig.ahead()
    rig.close_all()
    forward = runner.forward

    def spoiling(segments):
        logits = forward(segments).clone()
        if len(segments) == 2:
            logits[0] = float("nan")
        return logits

    with torch.inference_mode():
        monkeypatch.setattr(runner, "forward", spoiling)
        rig = DrafterRig(runner)
        rig.obey(opening(PROMPT, PENALTIES, sequence_id=7), opening(PROMPT, PENALTIES))
        rig.run()
    assert [refusal.sequence_id for refusal in rig.refusals()] == [7]
    assert rig.ahead() == expected
    rig.close_all()
