"""Without an SDK nothing is recorded, and what platforms send goes through; with one, what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

from workers import tracing
from workers.settings import Settings

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()


def test_a_platforms_trace_is_the_current_one_while_its_message_is_processed() -> None:
    assert tracing.current_trace_id() is None
    with tracing.processing("item-publish", 0, 7, {"traceparent": PARENT, "tracestate": b"vendor=1"}):
        assert tracing.current_trace_id() == TRACE
        with tracing.span("validate"):
            sent = tracing.headers_of(tracing.sending("cover-ready", "item", "id"))
    assert sent == {"traceparent": PARENT.decode(), "tracestate": "vendor=1"}
    assert tracing.current_trace_id() is None


@pytest.mark.parametrize("name", ["traceparent", "ce_traceparent"])
def test_a_message_names_its_trace_by_either_header(name: str) -> None:
    assert tracing.trace_id_of({name: PARENT}) == TRACE


def test_our_own_header_wins_over_the_producers_first_one() -> None:
    # CloudEvents' extension keeps the trace that the event began in; what carried it since is in traceparent.
    other = PARENT.replace(b"4", b"5")
    assert tracing.trace_id_of({"ce_traceparent": other, "traceparent": PARENT}) == TRACE


@pytest.mark.parametrize("value", [b"", b"00-aa-bb-01", b"\xff\xfe", b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01"])
def test_what_is_no_trace_is_none(value: bytes) -> None:
    assert tracing.trace_id_of({"traceparent": value}) is None
    with tracing.processing("item-publish", 0, 0, {"traceparent": value}):
        assert tracing.headers_of(tracing.sending("cover-ready", None, "id")) == {}


def test_messages_of_a_batch_are_not_looked_at() -> None:
    def headers() -> Iterator[Mapping[str, bytes]]:
        raise AssertionError("read though nothing is recorded")
        yield {}

    with tracing.together("append", headers()) as span:
        assert not span.is_recording()


def test_an_exception_goes_through() -> None:
    with pytest.raises(KeyError), tracing.span("store"):
        raise KeyError("x")


def test_it_is_off_until_opentelemetrys_own_variable_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().traces == "none"
    tracing.configure(Settings(), "test")
    assert not tracing.recording()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    assert Settings().traces == "otlp"


RECORDED = """
from workers import tracing
from workers.settings import settings

tracing.configure(settings(), "test")
tracing.configure(settings(), "test")  # as a command that sends twice does
headers = [{"traceparent": f"00-{number:032x}-{1:016x}-01".encode()} for number in range(1, 201)]
with tracing.together("learn", [{}, {"traceparent": b"odd"}, *headers]):
    pass
with tracing.processing("item-publish", 3, 7, headers[0]):
    tracing.sending("cover-ready", "item", "id").end()
tracing.flush()
"""


def test_with_an_sdk_spans_are_written_with_links_and_names() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RECORDED],
        env=os.environ | {"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "mine"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    decoder, text, spans = json.JSONDecoder(), done.stderr.strip(), []
    while text:
        span, end = decoder.raw_decode(text)
        spans.append(span)
        text = text[end:].lstrip()
    learn, send, process = spans
    assert learn["name"] == "learn"
    assert learn["parent_id"] is None
    assert len(learn["links"]) == tracing.MOST_LINKS - 2  # of the first 128 messages two belong to no trace
    assert send["parent_id"] == process["context"]["span_id"]
    assert process["context"]["trace_id"] == f"0x{1:032x}"
    assert process["attributes"]["messaging.destination.partition.id"] == "3"
    assert send["resource"]["attributes"]["service.name"] == "mine"
