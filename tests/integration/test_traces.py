"""Traces and log lines of real services."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from tests.integration.client import Client, request
from tests.integration.collector import Collector
from tests.integration.conftest import TINY
from tests.integration.processes import free_address, until

TOKENS = 400
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def traced(start, tiny, exact_plan):
    """A verifier, its drafter, and the collector that both send their spans to."""
    with Collector() as collector:
        place = free_address()
        options = (*TINY, "--otlp-endpoint", collector.endpoint, "--log-format", "json")
        drafter = start("drafter", tiny, (*options, "--layer-plan", str(exact_plan)), place)
        more = ("--drafter", place, "--trace-rounds", "1", "--draft-length", "4")
        verifier = start("verifier", tiny, (*options, *more))
        drafter.wait_ready()
        verifier.wait_ready()
        yield verifier, drafter, collector


async def test_a_request_is_traced_to_the_drafter(traced):
    """The caller's trace goes on in the verifier, its rounds, and the drafter's part of them; the
    log is one JSON object a line and names the request and its trace."""
    verifier, drafter, collector = traced
    async with Client(verifier.address) as client:
        await until(client.connected)
        traces = (TRACE[:-4] + f"{number:04x}" for number in itertools.count())
        trace, tokens = "", []

        async def drafted() -> bool:
            """On busy cores many steps find no drafts, which are not waited for."""
            nonlocal trace, tokens
            trace, tokens = next(traces), []
            parent = (("traceparent", f"00-{trace}-{CALLER}-01"),)
            call = client.stub.Generate(request([5, 6, 7], max_tokens=TOKENS), metadata=parent)
            async for message in call:
                tokens += [token.id for token in message.tokens]
                stats = message.stats
            return stats.num_accepted_tokens > stats.num_accepted_guess_tokens

        await until(drafted)
    # What is left is sent when a service stops.
    assert verifier.terminate() == drafter.terminate() == 0
    spans = [(name, span) for name, span in collector.spans if span.trace_id.hex() == trace]
    assert len(tokens) == TOKENS
    named = {span.name: [s for _, s in spans if s.name == span.name] for _, span in spans}
    (whole,) = named["generate"]
    assert whole.parent_span_id.hex() == CALLER
    assert [event.name for event in whole.events] == ["started", "first token"]
    rounds = {span.span_id: span for span in named["round"]}
    assert {span.parent_span_id for span in rounds.values()} == {whole.span_id}
    assert any(event.name == "drafted" for span in rounds.values() for event in span.events)
    assert {span.parent_span_id for span in named["draft"]} <= set(rounds)
    services = {span.name: service for service, span in spans}
    assert services["draft"] == "slipstream-drafter"
    assert services["round"] == services["generate"] == "slipstream-verifier"

    entries = [json.loads(line) for line in verifier.log.splitlines()]
    (line,) = (e for e in entries if e.get("trace_id") == trace and "sequence" in e["message"])
    assert re.match(r"request test: sequence \d+, 3 prompt", line["message"])
    assert (line["request_id"], line["service"]) == ("test", "verifier")
    assert all({"time", "level", "message"} <= set(entry) for entry in entries)
