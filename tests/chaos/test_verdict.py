"""The judge of a storm: whatever is planted in an answer or a session is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slipstream.wire.proto import gateway_pb2, types_pb2
from tests.chaos.answers import Answer, Choice, Heard, Truth
from tests.chaos.events import EventOrder
from tests.chaos.verdict import Turn, Verdict, compare, judge, judge_session, tally

TEXT = "a quick fox é 1 2 3"
IDS = (5, 6, 7, 8, 5, 6, 9)
LOGPROBS = (-0.5, -1.0, -0.25, -2.0, -0.5, -1.0, -3.0)
CHOICE = Choice(TEXT, IDS, tuple(map(str, IDS)), LOGPROBS, "stop", 7)
TRUTH = Truth((CHOICE, replace(CHOICE, text="other", finish_reason="length", tokens=3)), 11)


def right() -> Answer:
    answer = Answer(completion_tokens=10, prompt_tokens=11, done=True)
    answer.choices = {
        0: Heard(TEXT, list(IDS), list(map(str, IDS)), list(LOGPROBS), "stop"),
        1: Heard("other", list(IDS), [], list(LOGPROBS), "length"),
    }
    return answer


def test_the_right_answer_is_right():
    """What equals the undisturbed answer is right, also where the door tells no tokens, and where
    the client had to begin again."""
    assert judge(right(), TRUTH).verdict is Verdict.RIGHT
    answer = right()
    answer.choices[0].token_ids, answer.choices[0].token_texts = [], []
    answer.partials = [{0: Heard("a qui", [5, 6])}, {1: Heard("oth")}]
    assert judge(answer, TRUTH).verdict is Verdict.RIGHT


@pytest.mark.parametrize(
    ("text", "ids", "verdict"),
    [
        ("a quick fox é 1 2", IDS[:-1], Verdict.LOST),
        ("", (), Verdict.LOST),
        ("a quick  é 1 2 3", (5, 6, 5, 6, 9), Verdict.LOST),
        ("quick fox é 1 2 3", IDS[1:], Verdict.LOST),
        ("a quick quick fox é 1 2 3", (5, 6, 7, 7, 8, 5, 6, 9), Verdict.DOUBLED),
        (TEXT + " 3", (*IDS, 9), Verdict.DOUBLED),
        (TEXT * 2, IDS * 2, Verdict.DOUBLED),
        ("a quick box é 1 2 3", (5, 6, 3, 8, 5, 6, 9), Verdict.WRONG),
        ("a quick fox é 9 9 9 9", (5, 6, 7, 8, 1, 1, 1, 1), Verdict.WRONG),
    ],
)
def test_a_stretch_too_few_or_too_many(text, ids, verdict):
    """Missing heads, middles and tails, doubled tokens, other tokens: each by its name, in the text
    as in the ids."""
    assert compare("text", text, TEXT).verdict is verdict
    assert compare("ids", ids, IDS).verdict is verdict
    answer = right()
    answer.choices[0].text, answer.choices[0].token_ids = text, []
    answer.choices[0].token_texts = []
    found = judge(answer, TRUTH)
    assert found.verdict is verdict
    assert "continuation 0" in found.detail
    answer = right()
    answer.choices[1].token_ids = list(ids) or [1]
    assert judge(answer, TRUTH).verdict is not Verdict.RIGHT


def test_everything_else_that_can_be_wrong():
    """Reason, usage, log probabilities, a missing choice or end, a failure, a complaint, and what
    had come before the client began again."""

    def changed(change):
        answer = right()
        change(answer)
        return judge(answer, TRUTH).verdict

    assert changed(lambda a: setattr(a.choices[0], "finish_reason", "length")) is Verdict.WRONG
    assert changed(lambda a: setattr(a, "completion_tokens", 9)) is Verdict.WRONG
    assert changed(lambda a: setattr(a, "prompt_tokens", None)) is Verdict.WRONG
    assert changed(lambda a: a.choices[0].logprobs.pop()) is Verdict.WRONG
    assert changed(lambda a: a.choices[0].logprobs.append(-1.0)) is Verdict.WRONG
    assert changed(lambda a: a.choices[1].logprobs.__setitem__(2, float("nan"))) is Verdict.WRONG
    assert changed(lambda a: a.choices.pop(1)) is Verdict.LOST
    assert changed(lambda a: a.heard(2)) is not Verdict.RIGHT
    assert changed(lambda a: setattr(a, "done", False)) is Verdict.LOST
    assert changed(lambda a: setattr(a, "failure", "gone")) is Verdict.LOST
    assert changed(lambda a: a.complaints.append("500")) is Verdict.BROKEN
    assert changed(lambda a: a.partials.append({0: Heard("a quack")})) is Verdict.WRONG
    assert changed(lambda a: a.partials.append({0: Heard("", [5, 7])})) is Verdict.WRONG
    assert changed(lambda a: a.partials.append({2: Heard()})) is Verdict.WRONG


def test_a_session_holds_what_was_acknowledged():
    """No turn less, none changed, and one more only where its answer was under way."""
    a, b, c = Turn("hi", "ho"), Turn("and", "so"), Turn("on", "off")

    def verdict(stored, acknowledged, pending=None):
        return judge_session(stored, acknowledged, pending).verdict

    assert verdict([a, b], [a, b]) is verdict([a, b, c], [a, b], c) is Verdict.RIGHT
    assert verdict([a, b], [a, b], c) is verdict(None, []) is Verdict.RIGHT
    assert verdict([a], [a, b]) is verdict(None, [a]) is verdict([], [a]) is Verdict.LOST
    assert verdict([a, b, b], [a, b]) is Verdict.DOUBLED
    assert verdict([a, b, b], [a, b], c) is verdict([b, a], [a, b]) is Verdict.WRONG
    assert verdict([a, Turn("and", "so so")], [a, b]) is Verdict.WRONG
    assert tally({"x": judge_session([a], [a, b], None)})["lost"] == 1


def test_events_only_ever_grow():
    """Cursors count up for each continuation, over reconnections as well; what comes twice, out of
    turn, or after the end is found."""
    order = EventOrder()
    steps = [
        ("r/0", ()), ("r/0", ()), ("r/3", (0,)), ("r/3,2", (1,)), ("r/5,2", (0,)),
        ("r/5.,2", (0,)), ("r/5.,9", (1,)), ("r/5.,9.", ()), ("r/end", ()),
    ]  # fmt: skip
    assert [order.take(*step) for step in steps] == [""] * len(steps)
    assert order.ended
    assert "after the end" in order.take("r/5.,9.", ())

    def complaint(*taken):
        fresh = EventOrder()
        *good, last = taken
        assert [fresh.take(*each) for each in good] == [""] * len(good)
        return fresh.take(*last)

    assert "had come to 3" in complaint(("r/3", (0,)), ("r/3", (0,)))
    assert "had come to 3" in complaint(("r/3.", (0,)), ("r/3.", (0,)))
    assert "goes back" in complaint(("r/3", (0,)), ("r/2", (0,)))
    assert "goes back" in complaint(("r/3,1", (0,)), ("r/4", (0,)))
    assert "goes back" in complaint(("r/3.", ()), ("r/3", ()))
    assert "not of request" in complaint(("r/3", (0,)), ("s/4", (0,)))
    assert "not of request" in complaint(("17", (0,)))
    assert "no cursor" in complaint(("r/x", ()))
    assert "does not count" in complaint(("r/3", (1,)))
    assert "carries tokens" in complaint(("r/end", (0,)))


def test_answers_are_put_together_from_what_doors_send():
    """Chunks, whole bodies and gRPC responses of one answer give the same, tokens included where
    they are told."""
    chat, legacy, body, rpc = Answer(), Answer(), Answer(), Answer()
    top = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}
    usage = {"completion_tokens": 1, "prompt_tokens": 4}
    opening = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    assert chat.chunk({"id": "r", "choices": [opening], "usage": None}, 1.0) == []
    delta = {"index": 0, "delta": {"content": "a"}, "logprobs": top}
    assert chat.chunk({"id": "r", "choices": [delta]}, 2.0) == [0]
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert chat.chunk({"choices": [last], "session": {"stored": True}}, 3.0) == []
    chat.chunk({"choices": [], "usage": usage}, 3.0)
    old = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{}], "text_offset": [0]}
    choice = {"index": 0, "text": "a", "logprobs": old, "finish_reason": "stop"}
    assert legacy.chunk({"id": "r", "choices": [choice], "usage": usage}, 1.0) == [0]
    body.body({"id": "r", "choices": [choice], "usage": usage}, 1.0)
    message = gateway_pb2.GatewayServiceGenerateResponse(
        request_id="r",
        text="a",
        tokens=[types_pb2.Token(id=7, logprob=-0.5)],
        finish_reason=types_pb2.FINISH_REASON_STOP,
        usage=gateway_pb2.Usage(prompt_tokens=4, completion_tokens=1),
        session=gateway_pb2.SessionState(id="s", turns=1, stored=True),
    )
    assert rpc.message(message, 1.0) == [0]
    expected = Heard("a", [], ["a"], [-0.5], "stop")
    assert chat.choices[0] == legacy.choices[0] == body.choices[0] == expected
    assert rpc.choices[0] == Heard("a", [7], [], [-0.5], "stop")
    for answer in (chat, legacy, body, rpc):
        assert (answer.request_id, answer.completion_tokens, answer.prompt_tokens) == ("r", 1, 4)
    assert body.done
    assert chat.session == {"stored": True}
    assert rpc.session == {"id": "s", "turns": 1, "stored": True, "detail": ""}
    assert (chat.arrivals, rpc.arrivals) == ([2.0], [1.0])
