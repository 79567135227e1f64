"""Traces by OpenTelemetry, from an item's publication to `cover-ready`, carried in Kafka headers as W3C Trace Context.

Everywhere but in `configure` only OpenTelemetry's API is used. Without an SDK its spans do nothing but hand on what a
platform sent, so a platform's trace goes through us whether we record it or not. Of CloudEvents' distributed tracing
extension (`ce_traceparent`, `ce_tracestate`) we read what a platform sent; what we write is `traceparent`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Link, Span, SpanKind, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from workers.exceptions import UserError

if TYPE_CHECKING:
    from workers.settings import Settings

Headers = Mapping[str, bytes]

MOST_LINKS = 128
"""Of one span: the SDK's own default limit."""
FLUSH_SECONDS = 3.0
"""For spans that are left at the end of a process: a collector that is away must not hold up a drain."""

_W3C = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("icg")


def configure(settings: Settings, service: str) -> None:
    """Record spans of this process if `OTEL_TRACES_EXPORTER` asks for it; call it once, before anything is traced.

    Where they go, how many, and under what name is told by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, … The protocol is OTLP over HTTP.

    Raises:
        UserError: the SDK is not installed.
    """
    if settings.traces == "none" or recording():
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
    except ImportError as error:
        raise UserError(f"OTEL_TRACES_EXPORTER={settings.traces} needs the extra `tracing`: {error}") from None
    ours = Resource.create({"service.name": f"icg-{service}", "service.namespace": "icg"})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
    exporter: SpanExporter = OTLPSpanExporter() if settings.traces == "otlp" else ConsoleSpanExporter(out=sys.stderr)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Send what is recorded, before the process ends; for so long at most."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):  # there is no SDK in this process
        return
    thread = threading.Thread(target=provider.force_flush, name="flush-traces", daemon=True)  # type: ignore[attr-defined]
    thread.start()
    thread.join(seconds)


def context_of(headers: Headers) -> Context:
    """The trace that a message belongs to; an empty context where it names none, or none that is well formed."""
    found: dict[str, str] = {}
    for name in ("traceparent", "tracestate"):
        value = headers.get(name) or headers.get(f"ce_{name}")
        if value is not None:
            found[name] = value.decode("latin-1")
    return _W3C.extract(found, Context())


def trace_id_of(headers: Headers) -> str | None:
    """32 hex digits, None where a message belongs to no trace."""
    return _id(trace.get_current_span(context_of(headers)))


def current_trace_id() -> str | None:
    """Of the trace that this thread or task works for."""
    return _id(trace.get_current_span())


def _id(span: Span) -> str | None:
    found = span.get_span_context()
    return format_trace_id(found.trace_id) if found.is_valid else None


@contextmanager
def span(name: str, **attributes: AttributeValue) -> Iterator[Span]:
    """Work that is part of the current trace. An exception ends it as an error."""
    with trace.use_span(_tracer.start_span(name, attributes=attributes), end_on_exit=True) as opened:
        yield opened


@contextmanager
def processing(topic: str, partition: int, offset: int, headers: Headers) -> Iterator[Span]:
    """The work on one message, in its producer's trace or a new one."""
    attributes: dict[str, AttributeValue] = {
        **_kafka("process", topic),
        "messaging.destination.partition.id": str(partition),
        "messaging.kafka.offset": offset,
    }
    begun = _tracer.start_span(f"process {topic}", context_of(headers), SpanKind.CONSUMER, attributes)
    with trace.use_span(begun, end_on_exit=True) as opened:
        yield opened


@contextmanager
def together(name: str, messages: Iterable[Headers]) -> Iterator[Span]:
    """The work on many messages at once: a trace of its own, linked to theirs.

    Args:
        messages: their headers; read only if spans are recorded, and not beyond `MOST_LINKS` messages.
    """
    links = []
    if recording():
        found = (trace.get_current_span(context_of(each)).get_span_context() for each in islice(messages, MOST_LINKS))
        links = [Link(each) for each in found if each.is_valid]
    with trace.use_span(_tracer.start_span(name, Context(), links=links), end_on_exit=True) as opened:
        yield opened


def sending(topic: str, key: str | bytes | None, message_id: str, parent: Context | None = None) -> Span:
    """A message on its way to the broker; the caller ends the span with its delivery.

    Args:
        parent: None: the current context.
    """
    attributes = {**_kafka("send", topic), "messaging.message.id": message_id}
    if isinstance(key, str):
        attributes["messaging.kafka.message.key"] = key
    return _tracer.start_span(f"send {topic}", parent, SpanKind.PRODUCER, attributes)


def headers_of(span: Span) -> dict[str, str]:
    """`traceparent` and `tracestate` for a message that is sent within this span; {} where there is no trace."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier


def _kafka(operation: str, topic: str) -> dict[str, AttributeValue]:
    # Names of OpenTelemetry's semantic conventions for messaging.
    return {
        "messaging.system": "kafka",
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }


def recording() -> bool:
    """Whether this process has an SDK that keeps spans."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@dataclass(frozen=True, slots=True)
class Lap:
    """A piece of work that was done for several traces at once, measured once."""

    name: str
    begun_ns: int
    seconds: float

    def record(self, context: Context, **attributes: AttributeValue) -> None:
        """As a span of one of the traces."""
        begun = _tracer.start_span(self.name, context, attributes=attributes, start_time=self.begun_ns)
        begun.end(self.begun_ns + int(self.seconds * 1e9))


class Laps:
    """A stop watch: each `lap` is what has passed since the one before."""

    def __init__(self) -> None:
        self._at, self._since = time.time_ns(), time.monotonic()

    def lap(self, name: str) -> Lap:
        now = time.monotonic()
        done = Lap(name, self._at, now - self._since)
        self._at, self._since = time.time_ns(), now
        return done


__all__ = [
    "Context",
    "Lap",
    "Laps",
    "configure",
    "context_of",
    "current_trace_id",
    "flush",
    "get_current",
    "headers_of",
    "processing",
    "recording",
    "sending",
    "span",
    "together",
    "trace_id_of",
]
