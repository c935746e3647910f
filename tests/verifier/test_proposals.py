"""Which drafts a generation keeps: `propose`, `drafts` and `settle` by themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slipstream.core.draft import Proposal
from slipstream.core.params import StopConditions
from slipstream.core.prefix import Prefix, PrefixChain
from tests.verifier.rig import EOS, GREEDY
from verifier_service.generation import MOST_PENDING, Finish, Generation, GenerationRequest
from verifier_service.layouts import Drafter
from verifier_service.placement import Placement
from verifier_service.speculation import Speculation, SpeculationSettings

PROMPT = (10, 11, 12)


def generation(max_tokens: int = 20) -> Generation:
    stop = StopConditions(max_tokens)
    request = GenerationRequest("r", PROMPT, GREEDY, stop, True, None, lambda _: None)
    return Generation(1, request, "salt", frozenset({EOS}), len(PROMPT) + max_tokens)


def after(history: tuple[int, ...], *tokens: int) -> Proposal:
    return Proposal(1, PrefixChain("salt", history).at(len(history)), tokens)


@pytest.mark.parametrize(
    ("proposals", "kept", "stale"),
    [
        ([after(PROMPT, 1, 3)], (1, 3), 0),
        ([after(PROMPT, 1), after((*PROMPT, 1), 3), after((*PROMPT, 1, 3), 4)], (1, 3, 4), 0),
        # Reordered: a piece whose predecessor is not there yet is dropped.
        ([after((*PROMPT, 1), 3), after(PROMPT, 1)], (1,), 1),
        # The drafter changed its mind about the second token.
        ([after(PROMPT, 1, 3, 4), after((*PROMPT, 1), 5)], (1, 5), 0),
        ([after(PROMPT, 1, 3), after((*PROMPT, 9), 5, 6)], (1, 3), 2),
        # Sent before the last commits were heard, and right about them.
        ([after(PROMPT[:1], 11, 12, 7, 8)], (7, 8), 0),
        ([after((), *PROMPT, 7)], (7,), 0),
        ([after(PROMPT[:1], 11)], (), 0),
        ([after(PROMPT[:1], 11, 99, 7, 8)], (), 4),
        ([after((10, 99), 12, 7)], (), 2),
        ([after(PROMPT, 1, 3), after(PROMPT[:2], 12, 9)], (1, 3), 0),
        ([Proposal(1, Prefix(3, bytes(16)), (1, 3))], (), 2),
        ([Proposal(1, Prefix(4, bytes(16)), (1, 3))], (), 2),
        ([Proposal(1, Prefix(2**31, bytes(16)), (1,))], (), 1),
        ([Proposal(1, Prefix(3, b""), (1,))], (), 1),
        ([Proposal(1, PrefixChain("other model", PROMPT).at(3), (1,))], (), 1),
        ([after(PROMPT)], (), 0),
    ],
)
def test_what_is_kept(proposals, kept, stale) -> None:
    """Only drafts that continue what is committed, or the drafts before them, wait for a step."""
    g = generation()
    for proposal in proposals:
        g.propose(proposal)
    assert (g.drafts(8), g.stale_drafts) == (kept, stale)


def test_most_and_room() -> None:
    """A step takes no more drafts than allowed, nor any that could not be accepted."""
    g = generation(max_tokens=4)
    g.propose(after(PROMPT, *range(20, 40)))
    assert g.drafts(2) == (20, 21)
    assert g.drafts(8) == (20, 21, 22)  # the fourth token is the step's own
    assert g.drafts(0) == ()


def test_no_drafter_fills_the_memory() -> None:
    """Of one endless proposal, or of many that go on, the widest window is kept; those kept are
    the first."""
    at_once, piece_by_piece = generation(max_tokens=200), generation(max_tokens=200)
    at_once.propose(after(PROMPT, *[7] * 5000))
    for start in range(0, 150, 10):
        piece_by_piece.propose(after((*PROMPT, *[7] * start), *[7] * 10))
    for g in (at_once, piece_by_piece):
        assert g.drafts(1000) == (7,) * MOST_PENDING


@pytest.mark.parametrize(
    ("pending", "committed", "left"),
    [((1, 3, 4), (1,), (3, 4)), ((1, 3, 4), (1, 5), ()), ((1,), (1, 3), ()), ((), (1,), ())],
)
def test_settle(pending, committed, left) -> None:
    """After a commit the drafts that agree and lie beyond it stay, all others go."""
    g = generation()
    g.propose(after(PROMPT, *pending))
    for token in committed:
        g.append(token)
    g.settle(len(committed))
    assert g.drafts(8) == left


def test_commit_names_what_it_continues() -> None:
    """The command that tells the drafter names the prefix before the new tokens."""
    g = generation()
    for token in (7, 8):
        g.append(token)
    command = g.commit_command(2)
    assert command.prefix == PrefixChain("salt", PROMPT).at(3)
    assert command.tokens == (7, 8)


def test_ends() -> None:
    """An end token is STOP even as the last one allowed; otherwise the last one is LENGTH."""
    last_is_end, full = generation(max_tokens=2), generation(max_tokens=2)
    for g, second in ((last_is_end, EOS), (full, 9)):
        g.append(8)
        assert g.finish is None
        g.append(second)
    assert (last_is_end.finish, full.finish) == (Finish.STOP, Finish.LENGTH)


@pytest.mark.parametrize(("known", "paused"), [(0, False), (2, False), (3, True), (4, True)])
def test_a_pause_ends_with_the_commit_that_it_did_not_know(known: int, paused: bool) -> None:
    """A drafter that had not heard of the last commit goes on: its pause is not believed."""
    here = Drafter("here", frozenset())
    speculation = Speculation(
        lambda *_: None,
        SpeculationSettings(),
        {1: 0.01},
        Placement("separate", here, lambda _: None),
    )
    g = generation()
    speculation.connect(1, here, [g])
    proposal = replace(after(PROMPT, 1, 3), paused=True, committed=known)
    speculation.take(1, [proposal], [], {1: g}, 100, 0.0, 0.01)
    assert g.num_pending == 2
    assert g.paused == paused
