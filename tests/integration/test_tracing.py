"""One trace from `icg publish` to `cover-ready`, as a collector gets it: real processes, OTLP over HTTP."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bench.stream_world import World, publish
from infra.servers.process import free_port
from tests.servers import Light
from tests.waiting import until
from tests.zygote import Zygote
from workers import tracing
from workers.audit.questions import lineage
from workers.audit.views import Views
from workers.events import DEAD_LETTERS, CoverReady
from workers.messaging import Follower
from workers.records import Sidecar, sidecar_key
from workers.settings import Audit, Covers, Feast, environment

SMALL = Covers(steps=2, width=32, height=32, slots=4, threads=1, batch_items=4)
EVENT = ("validate", "wait", "encode", "denoise", "gate", "store", "manifest", "feast", "ready")
AROUND = ("send item-publish", "process item-publish", "send cover-ready")
"""Spans that end after those, so perhaps are exported after them."""


class Collector:
    """Takes what OTLP exporters post, as an OpenTelemetry collector would."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                for of in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = {each.key: each.value.string_value for each in of.resource.attributes}
                    found = [(names["service.name"], span) for scope in of.scope_spans for span in scope.spans]
                    collector.spans.extend(found)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def environment(self) -> dict[str, str]:
        return {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    def named(self, name: str, trace_id: str | None = None) -> list[tuple[str, Span]]:
        return [
            (service, span)
            for service, span in list(self.spans)
            if span.name == name and trace_id in {None, span.trace_id.hex()}
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def world(_applied: Feast, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(_applied.repo, folder / "feast")
    feast = Feast(repo=folder / "feast", yaml=folder / "feast" / "feature_store.yaml")
    with Light(folder / "servers") as servers:
        world = World(folder, servers.kafka, servers.s3, feast, tiny_model, SMALL)
        world.release(("a",))
        yield world
        world.close()


@pytest.fixture(scope="module")
def services(zygote: Zygote, light_zygote: Zygote, world: World, collector: Collector) -> Iterator[None]:
    """covers and audit, both exporting."""
    variables = environment(audit=Audit(batch_seconds=0.5)) | world.environment() | collector.environment()
    variables["ICG_LOG_FORMAT"] = "json"
    with (
        zygote.start("covers", ["Impossible"], variables, world.folder / "covers.log").running() as covers,
        light_zygote.start("audit", [], variables, world.folder / "audit.log").running() as audit,
    ):
        yield
        assert covers.terminate() == 0
        assert audit.terminate() == 0


def publish_by_command(world: World, collector: Collector, row: dict[str, object]) -> None:
    file = world.folder / f"{row['item_id']}.jsonl"
    file.write_text(json.dumps(row) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", "publish", str(file)],
        env=world.environment() | collector.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_one_trace_from_publish_to_cover_ready(world: World, collector: Collector, services: None) -> None:
    follower = Follower(world.settings.kafka, CoverReady.topic, start="latest")
    publish_by_command(world, collector, {"item_id": "traced", "title": "The Traced Item", "item_version": 1})
    messages = []
    until(lambda: messages.extend(follower.poll(10, 0.1)) or messages)
    follower.close()
    trace_id = tracing.trace_id_of(messages[0].headers)
    assert trace_id is not None
    until(lambda: all(collector.named(each, trace_id) for each in (*EVENT, *AROUND)))

    [(sender, send)] = collector.named("send item-publish", trace_id)
    [(drawer, process)] = collector.named("process item-publish", trace_id)
    assert (sender, drawer) == ("icg-publish", "icg-covers")
    assert not send.parent_span_id
    assert process.parent_span_id == send.span_id
    for name in EVENT:
        [(_, span)] = collector.named(name, trace_id)
        assert span.parent_span_id == process.span_id, name
        assert process.start_time_unix_nano <= span.start_time_unix_nano + 1_000_000, name
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= process.end_time_unix_nano + 1_000_000, name
    [(_, ready)] = collector.named("ready", trace_id)
    [(_, announced)] = collector.named("send cover-ready", trace_id)
    assert announced.parent_span_id == ready.span_id
    assert announced.span_id.hex() in messages[0].headers["traceparent"].decode()

    # The tables are written for many messages at once: another trace, linked to this one.
    def linked() -> bool:
        links = [link.trace_id.hex() for _, span in collector.named("append") for link in span.links]
        return links.count(trace_id) >= 2  # item-publish and cover-ready

    until(linked)
    [event] = [CoverReady.decode(message.value) for message in messages]
    cover = event.covers[0].cover_id
    stored = world.store.get(sidecar_key("traced", cover))
    assert stored is not None
    assert Sidecar.decode(stored.data).trace_id == trace_id
    assert lineage(Views(world.settings.s3), world.store, cover)["drawn"]["trace_id"] == trace_id


def test_a_dead_letter_names_the_trace_in_which_it_was_refused(
    world: World, collector: Collector, services: None
) -> None:
    follower = Follower(world.settings.kafka, DEAD_LETTERS, start="latest")
    world.send_raw(b'{"item_id": "without-a-version"}', "without-a-version")
    letters = []
    until(lambda: letters.extend(follower.poll(10, 0.1)) or letters)
    follower.close()
    trace_id = tracing.trace_id_of(letters[0].headers)
    assert trace_id is not None
    until(lambda: all(collector.named(each, trace_id) for each in ("process item-publish", "send dead-letters")))
    [(_, process)] = collector.named("process item-publish", trace_id)
    outcome = {each.key: each.value.string_value for each in process.attributes}["icg.outcome"]
    assert outcome == "dead-lettered"
    [(_, refused)] = collector.named("send dead-letters", trace_id)
    assert refused.parent_span_id == process.span_id
    lines = [json.loads(line) for line in (world.folder / "covers.log").read_text().splitlines() if line[:1] == "{"]
    [line] = [line for line in lines if line["message"].startswith("dead letter from")]
    assert line["trace_id"] == trace_id


def test_a_platforms_trace_goes_on_in_ours(world: World, collector: Collector, services: None) -> None:
    theirs = "c" * 32
    follower = Follower(world.settings.kafka, CoverReady.topic, start="latest")
    event = publish("from-a-platform")
    headers = {"ce_traceparent": f"00-{theirs}-{'d' * 16}-01".encode()}
    world.producer.send(event.topic, event.encode(), event.key(), headers).result(20)
    messages = []
    until(lambda: messages.extend(follower.poll(10, 0.1)) or messages)
    follower.close()
    assert tracing.trace_id_of(messages[0].headers) == theirs
    until(lambda: collector.named("process item-publish", theirs))
    [(_, process)] = collector.named("process item-publish", theirs)
    assert process.parent_span_id.hex() == "d" * 16


def test_an_answer_of_the_api_is_in_its_clients_trace(
    world: World, collector: Collector, zygote: Zygote, services: None
) -> None:
    """FastAPI makes the spans of requests itself."""
    world.wait([world.send(publish("asked-for"))], 120)
    port = free_port()
    variables = world.environment() | collector.environment() | {"ICG_API_PORT": str(port)}
    child = zygote.start("api", [], variables, world.folder / "api.log")
    with child.running(), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

        def ready() -> bool:
            child.check()
            with contextlib.suppress(httpx.HTTPError):
                return client.get("/readyz").status_code == 200
            return False

        until(ready)
        theirs = {"traceparent": f"00-{'e' * 32}-{'f' * 16}-01"}
        assert client.get("/v1/covers/asked-for", headers=theirs).status_code == 200
        assert client.get("/v1/covers/unknown", headers={"traceparent": "nonsense"}).status_code == 404
        until(lambda: len(collector.named("GET /v1/covers/{item_id}")) == 2)
        assert child.terminate(60) == 0
    [(service, answer)] = collector.named("GET /v1/covers/{item_id}", "e" * 32)
    assert service == "icg-api"
    assert answer.kind == Span.SPAN_KIND_SERVER
    assert answer.parent_span_id.hex() == "f" * 16
    assert [service for service, _ in collector.named("feast", "e" * 32)] == ["icg-api"]
    told = [{each.key: each.value.int_value for each in span.attributes} for _, span in collector.named(answer.name)]
    assert sorted(attributes["http.response.status_code"] for attributes in told) == [200, 404]


def test_a_collector_that_is_away_holds_nothing_up(world: World) -> None:
    file = world.folder / "away.jsonl"
    file.write_text('{"item_id": "away", "title": "Away", "item_version": 1}\n')
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", "publish", str(file)],
        env=world.environment() | {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("published 1 item")
    assert "Traceback" not in done.stderr
