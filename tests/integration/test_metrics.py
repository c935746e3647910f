"""Real services tell Prometheus what they do."""

from __future__ import annotations

import re
import urllib.request
from collections import defaultdict

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.client import Client, request
from tests.integration.conftest import TINY
from tests.integration.processes import free_address, until

NAMED = ("--served-model-name", "public-name")


def scrape(url: str) -> dict[str, float]:
    """Sums of each sample's values over its labels, by name without the prefix."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    sums: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name.removeprefix("slipstream:")] += sample.value
    return sums


@pytest.fixture(scope="module")
def watched(start, tiny, exact_plan):
    """A verifier and its drafter, and where both tell their metrics."""
    place, metrics = free_address(), ("--metrics", "127.0.0.1:0", *NAMED)
    options = (*TINY, "--layer-plan", str(exact_plan), *metrics)
    drafter = start("drafter", tiny, options, place)
    options = (*TINY, "--drafter", place, "--draft-length", "4", *metrics)
    verifier = start("verifier", tiny, options)
    drafter.wait_ready()
    verifier.wait_ready()
    told = [re.search(r"metrics on (\S+)", service.log)[1] for service in (verifier, drafter)]
    yield verifier, drafter, *told
    verifier.kill()
    drafter.kill()


def test_both_tell_of_the_model_by_the_name_that_clients_use(watched):
    """Series of both belong together by `model_name`, however the folder is called."""
    for url in watched[2:]:
        with urllib.request.urlopen(url, timeout=60) as answer:
            text = answer.read().decode()
        assert set(re.findall(r'model_name="([^"]*)"', text)) == {"public-name"}


async def test_both_tell_what_they_did(watched):
    """Tokens, drafts, steps, the overlap and the link: the numbers of both services fit."""
    verifier, _, ours, theirs = watched
    async with Client(verifier.address) as client:
        await until(client.connected)
        await client.generate(request([9] * 40, max_tokens=20))
        asked = 0

        async def overlapped() -> bool:
            """On busy cores an answer may be over before its first draft is there."""
            nonlocal asked
            asked += 1
            answer = await client.generate(request([5, 6, 7], max_tokens=60))
            assert len(answer.tokens) == 60
            now, stats = scrape(ours), answer.stats
            drafted = stats.num_accepted_tokens > stats.num_accepted_guess_tokens
            return drafted and now["spec_decode_overlap_seconds_total"] > 0

        await until(overlapped)
        # The drafter hears of the end a moment later.
        await until(lambda: scrape(theirs)["drafter_open_sequences"] == 0)

        async def at_one_time() -> bool:
            """Whether nothing came of drafts while the numbers were asked for."""
            nonlocal told, mine
            told, mine = await client.status(), scrape(ours)
            return bool(told.round_trips == mine["spec_decode_round_trip_seconds_count"])

        told, mine = None, {}
        await until(at_one_time)
    other = scrape(theirs)
    assert mine["prompt_tokens_total"] == 40 + 3 * asked
    assert mine["generation_tokens_total"] == 20 + 60 * asked
    assert mine["request_success_total"] == mine["e2e_request_latency_seconds_count"] == 1 + asked
    assert mine["inter_token_latency_seconds_count"] == 19 + 59 * asked
    assert mine["time_to_first_token_seconds_count"] == 1 + asked
    assert mine["num_requests_running"] == mine["num_requests_waiting"] == 0
    # A lease on keys and values may outlive its sequence for a while.
    assert 0 <= mine["kv_cache_usage_perc"] < 0.01

    assert 0 < mine["spec_decode_num_accepted_tokens_total"] <= 20 + 60 * asked
    accepted = mine["spec_decode_num_accepted_tokens_total"]
    assert mine["spec_decode_num_accepted_tokens_per_pos_total"] == accepted
    assert mine["engine_step_seconds_count"] == mine["iteration_tokens_total_count"]
    assert 0 < mine["engine_model_seconds_total"] < mine["engine_step_seconds_sum"]
    assert 0 < mine["spec_decode_overlap_seconds_total"] < mine["spec_decode_verify_seconds_total"]
    assert 0 < mine["spec_decode_overlap_ratio"] < 1
    rounds = mine["spec_decode_round_trip_seconds_count"]
    assert rounds > 0
    assert told.round_trips == rounds
    mean = mine["spec_decode_round_trip_seconds_sum"] / rounds
    assert told.round_trip_seconds == pytest.approx(mean)

    assert mine["drafter_connected"] == mine["drafter_connections_total"] == 1
    assert other["drafter_drafted_tokens_total"] >= accepted
    assert other["drafter_pass_seconds_count"] > 0
    assert other["process_resident_memory_bytes"] > 1e7
