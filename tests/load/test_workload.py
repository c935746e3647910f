"""What a load asks: reproducible, mixed in length, the same for whoever answers."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest

from slipstream.bench.load.asks import Ask, Extras, http_body
from slipstream.bench.load.book import know, known_answers
from slipstream.bench.load.chats import chats
from slipstream.bench.load.workload import WorkloadSettings, digest, workload
from slipstream.core.errors import ConfigurationError, InternalError
from tests.load.conftest import DIALOGUES, MODEL

ASK = Ask("n", "qa", (("user", "hi"),), 4, ignore_eos=True)


def test_chats_follow_from_a_seed():
    """The same seed gives the same chats, and more of them begin with the fewer."""
    assert chats(20, 1) == chats(40, 1)[:20]
    assert chats(20, 1) != chats(20, 2)
    assert len({each.name for each in chats(40, 1)}) == 40


def test_chats_are_as_uneven_as_people_are():
    """Most turns are a sentence, some a page; conversations and answers differ in length."""
    made = chats(300, 0, most_tokens=256)
    words = [len(turn.split()) for chat in made for turn in chat.turns]
    assert median(words) < 25
    assert max(words) > 300
    assert {len(chat.turns) for chat in made} == {1, 2, 3, 4, 5}
    answers = [tokens for chat in made for tokens in chat.max_tokens]
    assert 40 < median(answers) < 90
    assert max(answers) == 256
    assert min(answers) >= 8
    sampled = sum(chat.temperature > 0 for chat in made)
    assert 100 < sampled < 200


def test_a_workload_mixes_tasks_and_chats():
    """Questions and chats alternate; greedy asks for no sampling; the digest names the content."""
    mixed = workload(WorkloadSettings(limit=6, chats=3))
    kinds = [each.kind for each in mixed]
    assert kinds.count("chat") == 3
    assert kinds[:3] != ["chat"] * 3
    assert len(set(kinds)) == 7
    assert any(each.temperature > 0 for each in mixed)
    greedy = workload(WorkloadSettings(limit=6, chats=3, greedy=True))
    assert all(each.temperature == 0 for each in greedy)
    assert digest(mixed) == digest(workload(WorkloadSettings(limit=6, chats=3)))
    assert digest(mixed) != digest(greedy)
    with pytest.raises(ConfigurationError, match="nothing to ask"):
        workload(WorkloadSettings(limit=0, chats=0))


async def test_the_book_is_written_alone_and_read_again(served, tmp_path):
    """Every turn is asked once, plainly, with the answers before it; the next time nothing is."""
    said = []
    book = await known_answers(served.door, MODEL, DIALOGUES, tmp_path, said.append)
    assert len(served.fake.requests) == 5
    assert not any(request.speculative for request in served.fake.requests)
    first, second, third = book.dialogues[1]
    assert second.ask.messages[1] == ("assistant", first.known.text)
    assert third.ask.messages[: len(second.ask.messages)] == second.ask.messages
    assert [len(entry.known.token_ids) for entry in book.entries] == [6, 4, 9, 5, 12]
    again = await known_answers(served.door, MODEL, DIALOGUES, tmp_path, said.append)
    assert again == book
    assert len(served.fake.requests) == 5


async def test_no_book_without_strictness(served, tmp_path):
    """Answers that depend on company are no known answers."""
    model = type(MODEL)()
    model.CopyFrom(MODEL)
    model.exactness = "fast"
    with pytest.raises(ConfigurationError, match="strict"):
        await known_answers(served.door, model, DIALOGUES, tmp_path, print)


async def test_an_answer_that_cannot_be_had_is_not_known(served):
    """A failure becomes an error, not an empty answer that everything would equal."""
    failing = replace(served.fake.behaviour, error=InternalError("broken"), error_after=1)
    served.fake.behaviour = failing
    with pytest.raises(InternalError, match="no known answer"):
        await know(served.door, ASK)


def test_other_servers_get_nothing_of_ours():
    """A body for another OpenAI-compatible server holds OpenAI's fields only."""
    ours = http_body(ASK, "m", Extras(speculative=False, cache_salt="s"))
    theirs = http_body(ASK, "m", Extras(plain_openai=True, cache_salt="s"))
    assert {"speculative", "cache_salt", "ignore_eos"} <= ours.keys()
    assert not {"speculative", "cache_salt", "ignore_eos"} & theirs.keys()
    assert theirs["stream_options"] == {"include_usage": True}
