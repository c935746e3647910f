"""Event ids as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runs.cursor import Cursor, parse_cursor, split_event_id
from slipstream.core.errors import InvalidParameter


@given(st.lists(st.tuples(st.integers(0, 10**9 - 1), st.booleans()), min_size=1, max_size=128))
def test_what_is_written_is_read(parts):
    """Any cursor comes back from its text as it was."""
    ended = frozenset(place for place, (_, end) in enumerate(parts) if end)
    cursor = Cursor(tuple(count for count, _ in parts), ended)
    name, text = split_event_id(f"chatcmpl-a.b:c_D-1/{cursor}")
    assert name == "chatcmpl-a.b:c_D-1"
    assert parse_cursor(text, len(parts), None) == cursor


def test_the_words_of_the_specification():
    """The forms that clients see."""
    assert str(Cursor((17,))) == "17"
    assert str(Cursor((17, 12), frozenset({0}))) == "17.,12"
    assert str(Cursor((0,), over=True)) == "end"
    assert parse_cursor("end", 2, None).complete(include_usage=True)
    assert not parse_cursor("4.,4.", 2, None).complete(include_usage=True)
    assert parse_cursor("4.,4.", 2, None).complete(include_usage=False)
    assert not parse_cursor("4.,4", 2, None).complete(include_usage=False)


@pytest.mark.parametrize(
    "text",
    ["", "x", "x/", "/1", "x/1.5", "x/-1", "x/1,", "x/,1", "x/1..", "x/ 1", "x/1/2", "x/End",
     "x/1\n", "x/٣", "é/1", "x y/1", "x/1234567890", "a" * 201 + "/1", "x/" + ",".join("1" * 129)],
)  # fmt: skip
def test_other_texts_are_refused(text):
    """The error names the header, and shows no more than the beginning of what came."""
    with pytest.raises(InvalidParameter, match="Last-Event-ID") as raised:
        split_event_id(text)
    assert raised.value.param == "Last-Event-ID"
    assert len(raised.value.message) < 300


@pytest.mark.parametrize(("text", "choices", "most"), [("1", 2, None), ("1,2", 1, 9), ("10", 1, 9)])
def test_cursors_of_other_requests_are_refused(text, choices, most):
    """Another number of choices, or more tokens than were asked for."""
    with pytest.raises(InvalidParameter, match="resume_from"):
        parse_cursor(text, choices, most, "resume_from")
