"""OpenTelemetry spans. Where nobody asked for traces nothing of OpenTelemetry is imported."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from slipstream import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as SdkSpan

# How a span's identity travels (W3C Trace Context), in HTTP headers and in gRPC metadata.
TRACE_HEADERS = ("traceparent", "tracestate")
Headers = Mapping[str, str]
NO_HEADERS: Headers = MappingProxyType({})
# Of the request that the current task serves: what its client named.
incoming: ContextVar[Headers | None] = ContextVar("incoming", default=None)
Kind = Literal["server", "client", "internal"]
_STOP_SECONDS = 3.0


class Span:
    """A span that nobody records: it costs nothing, and has no identity.

    Attributes:
        recording: whether it is worth to prepare attributes.
        trace_id: 32 hexadecimal digits, or empty.
        headers: its identity, for a peer to continue.
    """

    recording = False
    trace_id = ""
    headers: Headers = NO_HEADERS

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Attributes; those that are None are left out."""

    def event(self, name: str, at: float | None = None) -> None:
        """Something that happened now, or `at` that reading of time.perf_counter."""

    def fail(self, kind: str, message: str) -> None:
        """It ends in an error of that kind."""

    def end(self, at: float | None = None) -> None:
        """It is over now, or was at that reading of time.perf_counter."""


NO_SPAN = Span()


class _Recorded(Span):
    recording = True

    def __init__(self, span: SdkSpan) -> None:
        from opentelemetry.trace import format_trace_id, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._span = span
        self.trace_id = format_trace_id(span.get_span_context().trace_id)
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers, set_span_in_context(span))
        self.headers = headers
        # A span that the sampler left out still carries the decision to the peers.
        self.recording = span.is_recording()

    def set(self, attributes: Mapping[str, Any]) -> None:
        self._span.set_attributes({k: v for k, v in attributes.items() if v is not None})

    def event(self, name: str, at: float | None = None) -> None:
        self._span.add_event(name, timestamp=_wall(at))

    def fail(self, kind: str, message: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR, message)

    def end(self, at: float | None = None) -> None:
        self._span.end(_wall(at))


def _wall(at: float | None) -> int | None:
    """A reading of time.perf_counter as nanoseconds of the wall clock."""
    if at is None:
        return None
    return time.time_ns() - round(1e9 * (time.perf_counter() - at))


class Tracing:
    """Begins spans, which are recorded nowhere."""

    def span(
        self,
        name: str,  # noqa: ARG002
        kind: Kind = "internal",  # noqa: ARG002
        parent: Headers | None = None,  # noqa: ARG002
        at: float | None = None,  # noqa: ARG002
    ) -> Span:
        """A new span. End it.

        Args:
            parent: headers that hold the identity of the span that it belongs to.
            at: when it began, as a reading of time.perf_counter.
        """
        return NO_SPAN

    def close(self) -> None:
        """Sends what is left, for at most some seconds."""


NO_TRACING = Tracing()


class RecordedTracing(Tracing):
    """Sends spans to an exporter, from a thread of its own.

    What is sampled, which attributes name this process, and what headers the collector wants: that
    is for OpenTelemetry's own variables to say (OTEL_TRACES_SAMPLER and so on).
    """

    def __init__(self, service: str, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = {"service.name": f"slipstream-{service}", "service.version": __version__}
        # Not the process's global provider: libraries that look for one would add their spans.
        self._provider: TracerProvider = TracerProvider(
            resource=Resource.create()
            .merge(Resource(named))
            .merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("slipstream", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def span(
        self,
        name: str,
        kind: Kind = "internal",
        parent: Headers | None = None,
        at: float | None = None,
    ) -> Span:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        kinds = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT}
        # From an empty context: what is current in this task is none of ours.
        context = self._propagator.extract(parent or {}, Context())
        return _Recorded(
            self._tracer.start_span(
                name, context, kinds.get(kind, SpanKind.INTERNAL), start_time=_wall(at)
            )
        )

    def close(self) -> None:
        # Its own time limit is longer than a service's grace where the collector is gone.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_STOP_SECONDS)


@contextlib.contextmanager
def tracing_to(service: str, endpoint: str) -> Iterator[Tracing]:
    """Traces to an OTLP collector while the block runs; none where `endpoint` is empty."""
    if not endpoint:
        yield NO_TRACING
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    tracing = RecordedTracing(service, OTLPSpanExporter(endpoint=endpoint))
    try:
        yield tracing
    finally:
        tracing.close()


def trace_headers(metadata: Iterable[tuple[str, str | bytes]] | None) -> Headers:
    """What of HTTP headers or gRPC metadata names a span."""
    return {k: str(v) for k, v in metadata or () if k in TRACE_HEADERS}
