"""Prometheus metrics that are read from plain numbers when somebody scrapes them.

Nothing here takes a lock or looks a label up where tokens are made: the engines count in integers,
and a service says once, in a function, which metric shows which of them.
"""

from __future__ import annotations

import contextlib
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from slipstream.core.errors import ConfigurationError
from slipstream.wire.address import join, split

log = logging.getLogger(__name__)
PREFIX = "slipstream:"
_ANY_HOST = "0.0.0.0"  # noqa: S104 where an address says so
# Upper bounds of buckets, in seconds.
LATENCY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 600.0)
GAP = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# The same for counts of tokens or rows.
TOKENS = tuple(float(2**i) for i in range(18))
SMALL = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)

Read = Callable[[], Iterable[Metric]]
_Value = TypeVar("_Value")


class Tally:
    """A histogram. One thread observes, any thread reads.

    Args:
        bounds: upper bounds of the buckets, ascending; one without a bound follows them.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """0 where nothing was observed."""
        return self.total / max(1, self.count)

    def buckets(self) -> list[tuple[str, float]]:
        """Prometheus' buckets: each bound with how many values are not above it."""
        names = [*(str(bound) for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


def counter(
    name: str, text: str, value: float | Mapping[str, float], label: str = ""
) -> CounterMetricFamily:
    """`name` is without the prefix and `_total`. With a label, `value` has a number for each of its
    values."""
    family = CounterMetricFamily(PREFIX + name, text, labels=[label] if label else [])
    for labels, number in _by_label(value):
        family.add_metric(labels, number)
    return family


def gauge(
    name: str, text: str, value: float | Mapping[str, float], label: str = ""
) -> GaugeMetricFamily:
    """As `counter`."""
    family = GaugeMetricFamily(PREFIX + name, text, labels=[label] if label else [])
    for labels, number in _by_label(value):
        family.add_metric(labels, number)
    return family


def histogram(
    name: str, text: str, value: Tally | Mapping[str, Tally], label: str = ""
) -> HistogramMetricFamily:
    """As `counter`."""
    family = HistogramMetricFamily(PREFIX + name, text, labels=[label] if label else [])
    for labels, tally in _by_label(value):
        family.add_metric(labels, tally.buckets(), tally.total)
    return family


def _by_label(value: _Value | Mapping[str, _Value]) -> list[tuple[list[str], _Value]]:
    if not isinstance(value, Mapping):
        return [([], value)]
    # A copy at once: the engine may add a key while this is read.
    return [([key], one) for key, one in dict(value).items()]


class Exposition(Collector):
    """The metrics of one service, and of its process.

    Every series says which component it comes from and for which model, so that names that two
    components share can be told apart.

    Args:
        component: gateway, verifier or drafter.

    Attributes:
        read: gives the metrics of now; called on the thread that answers a scrape.
        model: the model's name.
    """

    def __init__(self, component: str, model: str, read: Read = tuple) -> None:
        self.read, self.model = read, model
        self.registry = CollectorRegistry()
        self._component = component
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def collect(self) -> Iterator[Metric]:
        labels = {"component": self._component, "model_name": self.model}
        for family in self.read():
            family.samples = [s._replace(labels={**s.labels, **labels}) for s in family.samples]
            yield family


@contextlib.contextmanager
def exposed(exposition: Exposition, address: str) -> Iterator[int]:
    """Answers scrapes while the block runs, on a thread of its own. Gives the port.

    Args:
        address: host:port, where port 0 takes a free one; "off" answers none.

    Raises:
        ConfigurationError: the address cannot be had.
    """
    if address == "off":
        yield 0
        return
    host, port = split(address, "--metrics", any_host=True)
    try:
        server, thread = start_http_server(port, host or _ANY_HOST, exposition.registry)
    except OSError as failure:
        raise ConfigurationError(f"cannot serve metrics on {address} (--metrics)") from failure
    log.info("metrics on http://%s/metrics", join(host, server.server_port))
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5.0)
