"""What metrics are made of: tallies, labels, and the server that answers scrapes."""

from __future__ import annotations

import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from slipstream.core.errors import ConfigurationError
from slipstream.wire.telemetry.metrics import Exposition, Tally, counter, exposed, gauge, histogram


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_tally_is_a_histogram():
    """A value counts in the first bucket whose bound it does not exceed; sums add up."""
    tally = Tally((1.0, 2.0))
    for value, times in ((0.5, 1), (1.0, 2), (1.5, 1), (9.0, 3)):
        tally.observe(value, times)
    assert tally.buckets() == [("1.0", 3), ("2.0", 4), ("+Inf", 7)]
    assert tally.count == 7
    assert tally.total == pytest.approx(0.5 + 2.0 + 1.5 + 27.0)


def test_a_scrape_shows_the_numbers_of_that_moment():
    """Counters, gauges and histograms carry component, model and their own label, read anew."""
    numbers = {"a": 1.0}
    tally = Tally((1.0,))

    def read():
        yield counter("drops", "Drops", numbers, "reason")
        yield gauge("level", "Level", len(numbers))
        yield histogram("wait_seconds", "Waits", tally)

    exposition = Exposition("verifier", "m", read)
    with exposed(exposition, "127.0.0.1:0") as port:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            before = samples(answer.read().decode())
        numbers["b"] = 2.0
        tally.observe(3.0)
        with urllib.request.urlopen(url, timeout=10) as answer:
            after = samples(answer.read().decode())
    common = {("component", "verifier"), ("model_name", "m")}
    drops = "slipstream:drops_total"
    assert before[drops, frozenset({("reason", "a"), *common})] == 1
    assert (drops, frozenset({("reason", "b"), *common})) not in before
    assert after[drops, frozenset({("reason", "b"), *common})] == 2
    assert after["slipstream:level", frozenset(common)] == 2
    assert after["slipstream:wait_seconds_bucket", frozenset({("le", "1.0"), *common})] == 0
    assert after["slipstream:wait_seconds_count", frozenset(common)] == 1
    assert any(name == "process_resident_memory_bytes" for name, _ in after)


def test_no_address_serves_nothing_and_a_taken_one_is_named():
    """off opens no port; an address that cannot be had is an error of configuration."""
    with exposed(Exposition("verifier", "m"), "off") as port:
        assert port == 0
    with exposed(Exposition("verifier", "m"), "127.0.0.1:0") as port:
        for taken in (f"127.0.0.1:{port}", "127.0.0.1:x", "nowhere.invalid:1", "127.0.0.1:99999"):
            with pytest.raises(ConfigurationError, match="--metrics"):
                exposed(Exposition("verifier", "m"), taken).__enter__()
