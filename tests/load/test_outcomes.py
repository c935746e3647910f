"""The judge of answers: whatever is planted in one is found."""

from __future__ import annotations

import json
from dataclasses import replace

import grpc
import pytest

from slipstream.bench.load.doors import note_failure
from slipstream.bench.load.outcomes import Known, Verdict, judge, outcome
from slipstream.bench.load.reading import Reading
from slipstream.wire.proto import gateway_pb2, types_pb2

KNOWN = Known("a bc def", (10, 11, 12), "length", 4)


def over_http(text="a bc def", tokens=3, finish="length", prompt=4, end=9.0):
    """The lines that a gateway sends for this answer, read a second apart."""
    reading = Reading(due=1.0, sent=1.0)
    chunks = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    chunks += [{"choices": [{"index": 0, "delta": {"content": c}}], "usage": None} for c in text]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}] if finish else []
    if tokens is not None:
        usage = {"completion_tokens": tokens, "prompt_tokens": prompt}
        details = {"prompt_tokens_details": {"cached_tokens": 2}}
        chunks.append({"choices": [], "usage": usage | details})
    for second, chunk in enumerate(chunks):
        reading.line(f"data: {json.dumps(chunk)}", 1.0 + second)
        reading.line("", 1.0 + second)
    reading.line("data: [DONE]", 8.0)
    reading.end = end
    return reading


def over_grpc(ids=(10, 11, 12), text="a bc def", finish=types_pb2.FINISH_REASON_LENGTH):
    reading = Reading(due=0.0, sent=0.0)
    tokens = [types_pb2.Token(id=each) for each in ids]
    half = len(tokens) // 2
    message = gateway_pb2.GatewayServiceGenerateResponse
    reading.message(message(tokens=tokens[:half], text=text[:2]), 1.0)
    usage = gateway_pb2.Usage(prompt_tokens=4, completion_tokens=len(ids), cached_prompt_tokens=3)
    last = message(tokens=tokens[half:], text=text[2:], finish_reason=finish, usage=usage)
    reading.message(last, 2.0)
    reading.end = 3.0
    return reading


def test_the_known_answer_is_right_at_both_doors():
    """What equals the known answer in text, ids, counts and reason is right, with its times."""
    found = outcome("n", "qa", over_http(), KNOWN, start=0.5)
    assert found.verdict is Verdict.RIGHT
    assert (found.due, found.ttft, found.e2e) == (0.5, 1.0, 8.0)
    assert found.gaps == (1.0,) * 7
    assert (found.tokens, found.prompt_tokens, found.cached_tokens) == (3, 4, 2)
    found = outcome("n", "qa", over_grpc(), KNOWN)
    assert (found.verdict, found.ttft, found.gaps) == (Verdict.RIGHT, 1.0, (1.0,))
    assert (found.tokens, found.cached_tokens) == (3, 3)


@pytest.mark.parametrize(
    "reading",
    [
        over_http("a bc dxf"),
        over_http("a bc def!"),
        over_http("x"),
        over_http(finish="stop"),
        over_http(prompt=5),
        over_grpc((10, 11, 99)),
        over_grpc((10, 99, 12)),
        over_grpc((10, 11, 12, 13)),
        over_grpc(text="a bc dex"),
    ],
)
def test_a_planted_token_is_wrong(reading):
    """Another token or letter, one too many, another reason or prompt: wrong, and said where."""
    verdict, detail = judge(reading, KNOWN)
    assert verdict is Verdict.WRONG
    assert detail


@pytest.mark.parametrize(
    "reading",
    [
        over_http(finish=None),
        over_http(tokens=None),
        over_http("a bc"),
        over_http(tokens=2),
        over_grpc((10, 11)),
        over_grpc(text="a bc"),
        over_grpc(finish=0),
    ],
)
def test_less_than_the_known_answer_is_truncated(reading):
    """A beginning of the answer that claims to be all of it, or an end that never came."""
    assert judge(reading, KNOWN)[0] is Verdict.TRUNCATED


def test_a_failure_is_missing_unless_what_came_was_wrong():
    """No answer is a fault of its own; one that went wrong before it broke is wrong."""
    broken = over_http("a bc", tokens=None, finish=None)
    broken.failure = "connection reset"
    assert judge(broken, KNOWN) == (Verdict.MISSING, "connection reset")
    broken.text = "b"
    assert judge(broken, KNOWN)[0] is Verdict.WRONG
    event = Reading(0.0, 0.0)
    event.line('data: {"error": {"message": "lost", "code": "unavailable"}}', 1.0)
    assert judge(event, KNOWN)[0] is Verdict.MISSING
    noise = Reading(0.0, 0.0)
    noise.line("data: {not json", 1.0)
    assert judge(noise, KNOWN)[0] is Verdict.MISSING


def test_who_left_is_judged_by_what_had_come():
    """A client that goes away is no fault, unless a wrong token had come by then."""
    left = over_http("a b", tokens=None, finish=None)
    left.left = True
    assert judge(left, KNOWN)[0] is Verdict.CANCELLED
    left.text = "a c"
    assert judge(left, KNOWN)[0] is Verdict.WRONG


def test_refusals_are_apart():
    """429 is a refusal with the wait it asks for; any other status is a missing answer."""
    reading = Reading(0.0, 0.0)
    reading.refuse(429, "busy", "2.5")
    assert judge(reading, KNOWN)[0] is Verdict.REFUSED
    assert outcome("n", "qa", reading, KNOWN).retry_after == 2.5
    reading = Reading(0.0, 0.0)
    reading.refuse(503, "no verifier", None)
    assert judge(reading, KNOWN)[0] is Verdict.MISSING


class Failed:
    """What grpc raises: a status, its words, and what came with it."""

    def code(self):
        return grpc.StatusCode.RESOURCE_EXHAUSTED

    def details(self):
        return "given up"

    def trailing_metadata(self):
        return (("slipstream-error-code", "overloaded"), ("slipstream-retry-after-ms", "1500"))


def test_a_grpc_call_that_had_begun_is_not_refused_but_missing():
    """RESOURCE_EXHAUSTED before a token is a refusal; after one an answer that broke off."""
    reading = Reading(0.0, 0.0)
    note_failure(reading, Failed())
    assert judge(reading, KNOWN)[0] is Verdict.REFUSED
    assert reading.retry_after == 1.5
    reading = Reading(0.0, 0.0)
    token = types_pb2.Token(id=10)
    reading.message(gateway_pb2.GatewayServiceGenerateResponse(tokens=[token]), 1.0)
    note_failure(reading, Failed())
    assert judge(reading, KNOWN)[0] is Verdict.MISSING


def test_without_a_known_answer_it_must_at_least_be_whole():
    """Of another server: complete with text, reason and usage, or a fault."""
    assert judge(over_http("anything"), None)[0] is Verdict.COMPLETE
    assert judge(over_http(finish=None), None)[0] is Verdict.TRUNCATED
    assert judge(over_http("", tokens=0), None)[0] is Verdict.MISSING


def test_a_known_answer_of_other_ids_and_the_same_text_is_wrong():
    """Equal text does not hide unequal tokens where the door tells them."""
    other = replace(KNOWN, token_ids=(10, 12, 11))
    assert judge(over_grpc(), other)[0] is Verdict.WRONG
