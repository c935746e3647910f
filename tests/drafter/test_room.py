"""Room in the drafter's pool: it grows with a sequence, is shared, and nothing fails without it."""

from __future__ import annotations

import pytest
import torch

from slipstream.core.draft import Close
from slipstream.core.params import SamplingParams
from slipstream.engine.kv_pool import BLOCK_TOKENS
from tests.drafter.rig import DrafterRig, opening
from tests.verifier.rig import GREEDY, VOCAB

SAMPLED = SamplingParams(temperature=1.0, seed=3)
COMMON = tuple(range(10, 80))


def _prompt(number: int, length: int) -> list[int]:
    return [(number * 31 + i * 7) % VOCAB for i in range(length)]


def test_room_grows_with_the_text(runner) -> None:
    """Sequences that could become ten times the pool together all draft: they hold what they have
    come to, not the most that they may."""
    rig = DrafterRig(runner)
    for number in range(8):
        rig.obey(opening(_prompt(number, 30), GREEDY, sequence_id=number, max_length=600))
    rig.run()
    assert [len(rig.ahead(number)) for number in range(8)] == [8] * 8
    assert runner.pool.num_used == 8 * 3
    history = _prompt(0, 30)
    for _ in range(12):
        decided = rig.ahead(0)
        rig.obey(rig.commit(history, *decided, sequence_id=0))
        history += decided
        rig.run()
    assert len(rig.ahead(0)) == 8
    assert rig.refusals() == []
    rig.close_all()


def test_a_full_pool_stops_nobody(runner) -> None:
    """When no sequence can grow the least recently used one is given up, with the reason, and the
    others go on; one that has not begun waits until there is room, and then drafts."""
    rig = DrafterRig(runner)
    histories = [_prompt(number, 150) for number in range(3)]  # 30 of 40 blocks
    for number, history in enumerate(histories):
        rig.obey(opening(history, GREEDY, sequence_id=number, max_length=640, window=4))
    rig.run()
    rig.obey(opening(_prompt(9, 150), GREEDY, sequence_id=9, max_length=640, window=4))
    for _ in range(40):
        for number in (1, 2):
            decided = rig.ahead(number)
            assert decided
            rig.obey(rig.commit(histories[number], *decided, sequence_id=number))
            histories[number] += decided
            rig.run()
        if rig.refusals():
            break
        assert rig.draft(9).sequence.table is None
    assert [refusal.sequence_id for refusal in rig.refusals()] == [0]
    assert "full" in rig.refusals()[0].reason
    assert rig.ahead(1)
    assert rig.ahead(2)
    rig.obey(Close(1))
    rig.run()
    assert len(rig.ahead(9)) == 4
    rig.close_all()


def test_even_one_sequence_alone_may_fill_the_pool(runner) -> None:
    """A sequence as long as the pool drafts to its very end."""
    rig = DrafterRig(runner)
    most = runner.pool.num_blocks * BLOCK_TOKENS
    rig.obey(opening(_prompt(1, most - 6), GREEDY, max_length=most))
    rig.run()
    assert len(rig.ahead()) == 5
    assert rig.refusals() == []
    rig.close_all()


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_a_known_beginning_is_not_computed_again(runner, params) -> None:
    """A sequence that begins as another did, or does, drafts the same tokens from the same keys and
    values as if it had computed them, and computes only what is new."""
    rig = DrafterRig(runner)
    texts = [(*COMMON, *range(5, 5 + 9 * n)) for n in (1, 2)]
    expected = []
    for text in texts:
        rig.obey(opening(text, params))
        rig.run()
        expected.append((rig.ahead(), rig.kv()))
        rig.close_all()
    shared = rig.engine._room.shared_tokens
    assert shared == 0
    for number, text in enumerate(texts):
        rig.obey(opening(text, params, sequence_id=number))
        rig.run()
    rig.obey(Close(0))
    rig.obey(opening(texts[0], params, sequence_id=0))
    rig.run()
    for number, (ahead, kv) in enumerate(expected):
        assert rig.ahead(number) == ahead
        assert torch.equal(rig.kv(number), kv)
    # 64 of the second's 88, and 64 of the first's 79 when it came again.
    assert rig.engine._room.shared_tokens == 2 * 64
    rig.close_all()


def test_drafts_are_shared_by_nobody(runner) -> None:
    """What was drafted and not committed is no part of what others find."""
    rig = DrafterRig(runner)
    rig.obey(opening(COMMON[:30], GREEDY, window=20, max_length=200))
    rig.run()
    ahead = rig.ahead()
    assert len(ahead) == 20
    rig.obey(Close(1))
    rig.obey(opening((*COMMON[:30], *ahead), GREEDY))
    rig.run()
    assert rig.engine._room.shared_tokens == 16
    rig.close_all()
