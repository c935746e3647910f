"""Spans: who belongs to whom, and what they say."""

from __future__ import annotations

import re
import time

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from slipstream.core.draft import Close, Commit, Open, Proposal, SetWindow
from slipstream.core.errors import Overloaded
from slipstream.core.params import SamplingParams, StopConditions
from slipstream.core.prefix import PrefixChain
from slipstream.wire.telemetry.tracing import NO_SPAN, RecordedTracing, trace_headers
from verifier_service.generation import Finish, GenerationRequest, Progress
from verifier_service.rounds import Rounds
from verifier_service.telemetry import Telemetry
from verifier_service.watch import watched

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exported():
    """Tracing into memory, and what it recorded by then, by name."""
    exporter = InMemorySpanExporter()
    tracing = RecordedTracing("verifier", exporter)

    def spans():
        tracing._provider.force_flush()
        return {span.name: span for span in exporter.get_finished_spans()}

    yield tracing, spans
    tracing.close()


def generation_request() -> GenerationRequest:
    return GenerationRequest(
        "r1", (1, 2, 3), SamplingParams(), StopConditions(8), True, None, lambda _: None
    )


def test_a_span_continues_its_parent(exported):
    """The identity that came in is the parent's, the one that goes out is the span's own."""
    tracing, spans = exported
    span = tracing.span("x", "server", {"traceparent": CLIENT})
    span.set({"a.b": 1, "none": None})
    span.end()
    found = spans()["x"]
    assert format(found.context.trace_id, "032x") == span.trace_id == CLIENT.split("-")[1]
    assert format(found.parent.span_id, "016x") == CLIENT.split("-")[2]
    assert span.headers["traceparent"].split("-")[2] == format(found.context.span_id, "016x")
    assert dict(found.attributes) == {"a.b": 1}
    assert found.resource.attributes["service.name"] == "slipstream-verifier"


def test_what_the_client_left_out_is_left_out(exported):
    """A client's decision not to sample holds, and travels on."""
    tracing, spans = exported
    span = tracing.span("x", "server", {"traceparent": CLIENT[:-1] + "0"})
    span.end()
    assert not span.recording
    assert span.headers["traceparent"].endswith("-00")
    assert spans() == {}


def test_a_request_on_the_verifier(exported):
    """Queue, prefill and first token lie where they were in time; tokens are counted."""
    tracing, spans = exported
    request = generation_request()
    metadata = (("traceparent", CLIENT), ("user-agent", b"x"))
    with watched(tracing, request, metadata) as watch:
        # So long that a pause between two readings of the clocks is nothing.
        request.times.started = request.times.arrived + 2500
        request.times.first = request.times.arrived + 7500
        request.times.last = request.times.arrived + 10_000
        watch.heard(Progress(tokens=(1, 2)))  # type: ignore[arg-type]
        watch.heard(Progress(tokens=(3,), finish=Finish.LENGTH))  # type: ignore[arg-type]
    span = spans()["generate"]
    at = {event.name: (event.timestamp - span.start_time) / 1e9 for event in span.events}
    assert at == pytest.approx({"started": 2500, "first token": 7500}, abs=100)
    assert span.attributes["gen_ai.usage.output_tokens"] == 3
    assert span.attributes["slipstream.outcome"] == "length"
    assert span.attributes["slipstream.prefill_seconds"] == pytest.approx(5000)


def test_a_refused_request_is_an_error(exported, caplog):
    """The span names the error's code, and the log says what became of the request."""
    tracing, spans = exported
    caplog.set_level("INFO")
    with pytest.raises(Overloaded), watched(tracing, generation_request(), ()):
        raise Overloaded("full")
    span = spans()["generate"]
    assert span.attributes["error.type"] == Overloaded("").code
    assert span.status.description == "full"
    assert re.search(r"request r1: .* overloaded", caplog.text)


def test_a_round_is_timed_and_traced(exported):
    """From the step that committed to the first draft that knows of it, as a child of its request.

    Drafts that do not know of the commit do not answer it; sequences without a window wait for
    none.
    """
    tracing, spans = exported
    telemetry = Telemetry()
    rounds = Rounds(telemetry, tracing, share=1.0)
    request = tracing.span("generate")
    telemetry.spans[1] = request
    chain = PrefixChain("s", [1, 2, 3, 4])
    opening = Open(1, (1, 2, 3), 3, SamplingParams(), 8, 100)
    began = time.perf_counter()
    telemetry.last_step = (began - 5000, began, 2)
    assert rounds.sent([opening]) == ""
    parent = rounds.sent([Commit(1, chain.at(3), (4,))])
    rounds.heard([Proposal(1, chain.at(3), (4, 5), paused=False, committed=3)], 1.0)
    assert rounds.round_trip.count == 0
    rounds.heard([Proposal(1, chain.at(4), (5, 6), paused=False, committed=4)], 2.0)
    assert rounds.round_trip.count == 1
    rounds.sent([SetWindow(1, 0)])
    assert rounds.sent([Commit(1, chain.at(3), (4,)), Close(1)]) == ""
    request.end()
    found, whole = spans()["round"], spans()["generate"]
    assert found.parent.span_id == whole.context.span_id
    assert parent.split("-")[2] == format(found.context.span_id, "016x")
    names = [event.name for event in found.events]
    assert names == ["committed", "drafted"]
    assert (found.events[0].timestamp - found.start_time) / 1e9 == pytest.approx(5000, abs=100)
    assert found.attributes["slipstream.draft_tokens"] == 2


def test_a_round_that_is_given_up_ends():
    """A drafter that is far behind leaves no span open: what it drafts yet has a parent."""
    exporter = InMemorySpanExporter()
    tracing, telemetry = RecordedTracing("verifier", exporter), Telemetry()
    rounds = Rounds(telemetry, tracing, share=1.0)
    telemetry.spans[1] = tracing.span("generate")
    tokens = list(range(1, 203))
    chain = PrefixChain("s", tokens)
    for length in range(3, 203):
        rounds.sent([Commit(1, chain.at(length - 1), (tokens[length - 1],))])
    rounds.sent([Close(1)])
    tracing.close()
    ended = [span for span in exporter.get_finished_spans() if span.name == "round"]
    assert len(ended) == 200


def test_headers_are_picked_from_what_came():
    """Nothing but W3C's two names is taken over."""
    metadata = (("traceparent", CLIENT), ("authorization", "Bearer x"), ("tracestate", "a=b"))
    assert trace_headers(metadata) == {"traceparent": CLIENT, "tracestate": "a=b"}
    assert trace_headers(None) == {}
    assert not NO_SPAN.recording
