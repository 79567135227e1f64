"""`icg demo`: the whole loop on this machine, from publish events to a release that was learned from clicks.

Servers and services are processes of their own, as in production. This module speaks to them from outside only, over
Kafka, S3, Feast and HTTP, as a platform, a recommender and an operator would.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from workers import probes
from workers.bootstrap import EXAMPLES, PARTS, first_release, people
from workers.embedded import Embedded
from workers.events import DEAD_LETTERS, NEUTRAL, CoverReady, ItemPublish
from workers.exceptions import EmbeddedError, Fault, UserError
from workers.messaging import Follower, Producer
from workers.records import Release
from workers.releases import Releases
from workers.settings import Api, Audit, Preferences, Settings, environment
from workers.storage import ObjectStore
from workers.supervisor import ServiceEnded, Supervisor

LEAST_FREE_BYTES = 2 * 2**30
"""At the start, for model parts, local copies of them, logs and tables."""
LEAST_LEFT_BYTES = 100 * 2**20
"""On the way: with less, services wait for space for as long as it takes, and somebody has to be told."""

SERVICES = ("covers", "preferences", "audit", "api")


class DemoError(UserError):
    """What keeps the demo from running, in a line for a person."""

    status = 1


@dataclass(frozen=True)
class Result:
    """What a run measured. Readers and clicks are simulated."""

    items: int
    covers: int
    covers_per_second: float
    first_cover_seconds: float
    publish_to_ready_p50_seconds: float
    publish_to_ready_p95_seconds: float
    simulated_impressions: int
    simulated_clicks: int
    fetch_p50_ms: float
    fetch_p95_ms: float
    events_learned: int
    release_before: int
    release_after: int
    dead_letters: int
    total_seconds: float


class Demo:
    """One run.

    Args:
        folder: for the servers' data and the logs; what an earlier demo left there is removed.
        port: of the api on 127.0.0.1.
        pages: how many pages the simulated readers read.
    """

    def __init__(self, folder: Path, *, port: int, pages: int) -> None:
        self._folder = folder.resolve()
        self._port = port
        self._pages = pages
        self._console = Console()
        self._began = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def run(self, *, stay: bool, json_file: Path | None = None) -> Result:
        """Run to the table; with `stay`, keep everything up until Ctrl-C.

        Raises:
            DemoError: a port in use, no space, a demo beside this one, or a service that ended.
        """
        self._check_machine()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            with self._servers() as embedded, Supervisor(self._folder / "logs") as services:
                with self._progress:
                    result = self._loop(embedded, services)
                self._print(result)
                if json_file:
                    json_file.write_text(json.dumps(asdict(result), indent=2) + "\n")
                if stay:
                    self._stay(embedded, services)
        except (EmbeddedError, ServiceEnded) as error:
            raise DemoError(str(error)) from None
        except OSError as error:
            raise DemoError(f"{error.strerror or error}: {error.filename or self._folder}") from error
        return result

    def _servers(self) -> Embedded:
        with self._progress, self._stage("broker, S3, Feast", 1):
            return Embedded(self._folder, fresh=("logs", "feast", "cache"))

    def _check_machine(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self._port))
            except OSError:
                raise DemoError(f"port {self._port} is in use; choose another with --port") from None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DemoError(f"cannot write to {self._folder}: {error.strerror}") from None
        check_space(self._folder, LEAST_FREE_BYTES)

    def _loop(self, embedded: Embedded, services: Supervisor) -> Result:
        settings = Settings(
            kafka=embedded.kafka,
            s3=embedded.s3,
            feast=embedded.feast,
            api=Api(port=self._port),
            # Some hundred pairs cannot show that order and calibration are as good to within the usual margins.
            preferences=Preferences(
                checkpoint_seconds=5.0, release_pairs=100, order_margin=0.3, calibration_margin=0.2
            ),
            audit=Audit(batch_seconds=2.0),
            cache=self._folder / "cache",
        )
        health = self._addresses()
        # The others start when there is a cover: on two cores their imports would hold it up.
        self._start(settings, services, ("covers",), health)
        producer = Producer(settings.kafka, "demo")
        releases = Releases(ObjectStore(settings.s3), settings.cache, producer)

        with self._stage("model, users, segments", len(PARTS) + 2) as step:
            first_release(releases, made_by="icg demo", progress=step)
            before = people(settings, EXAMPLES / "users.parquet")
            step(len(PARTS) + 2)
        self._wait(services, "cover worker ready", 1, lambda: int(probes.ready(health["covers"])))
        items = self._publish(settings, producer)
        segments = releases.segments(before)
        assert segments is not None
        wanted = {segment.segment_id for segment in segments.segments} | {NEUTRAL}
        watch = Watch(settings, {item["item_id"] for item in items}, wanted)
        self._wait(services, "first cover", 1, lambda: int(watch.covers() > 0))
        self._start(settings, services, SERVICES[1:], health)
        self._wait(services, "covers drawn", len(items) * len(wanted), watch.covers)

        self._wait(services, "services ready", len(SERVICES), lambda: sum(map(probes.ready, health.values())))
        totals = self._read(services, items, producer)
        self._wait(services, "preference learned, release swapped in", 2, lambda: _learned(releases, before, health))
        after = releases.current()
        assert after is not None
        dead_letters = Follower(settings.kafka, DEAD_LETTERS)
        result = Result(
            items=len(items),
            covers=watch.covers(),
            covers_per_second=watch.covers() / watch.span_seconds(),
            first_cover_seconds=watch.first_cover - self._began,
            publish_to_ready_p50_seconds=float(np.percentile(watch.latencies(), 50)),
            publish_to_ready_p95_seconds=float(np.percentile(watch.latencies(), 95)),
            simulated_impressions=totals.impressions,
            simulated_clicks=totals.clicks,
            fetch_p50_ms=totals.percentile(50) * 1000,
            fetch_p95_ms=totals.percentile(95) * 1000,
            events_learned=int(probes.metric(health["preferences"], "icg_preferences_events_total")),
            release_before=before.number,
            release_after=after.number,
            dead_letters=len(dead_letters.poll(10_000, 1.0)),
            total_seconds=time.monotonic() - self._began,
        )
        for client in (dead_letters, watch, producer):
            client.close()
        return result

    def _addresses(self) -> dict[str, str]:
        """Where each service answers /readyz and /metrics."""
        ports = {name: _free_port() for name in SERVICES} | {"api": self._port}
        return {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}

    def _start(self, settings: Settings, services: Supervisor, names: Sequence[str], health: Mapping[str, str]) -> None:
        sections = {name: getattr(settings, name) for name in ("kafka", "s3", "feast", "api", "preferences", "audit")}
        variables = environment(**sections) | {"ICG_CACHE": str(settings.cache)}
        # Threads of torch spin while they wait for one another: a core is left to the servers and the other services.
        variables.setdefault("ICG_COVERS_THREADS", str(min(2, max(1, _cores() - 1))))
        for name in names:
            own = {"ICG_HEALTH_PORT": health[name].rsplit(":", 1)[1]} if name != "api" else {}
            services.start(name, ["run", name], variables | own)
        self._write_variables(variables)

    def _write_variables(self, variables: Mapping[str, str]) -> None:
        """So that `icg` in another terminal reaches these servers: `source <folder>/env`."""
        ours = {name: value for name, value in variables.items() if name.startswith("ICG_")}
        ours["COVERS_API"] = f"http://127.0.0.1:{self._port}"
        lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(ours.items())]
        lines.append(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
        (self._folder / "env").write_text("\n".join(lines) + "\n")

    def _publish(self, settings: Settings, producer: Producer) -> list[dict[str, Any]]:
        from workers.publishing import publish_file
        from workers.simulate import read_items

        catalogue = EXAMPLES / "catalogue.jsonl"
        publish_file(settings, catalogue)
        return read_items(catalogue)

    def _read(self, services: Supervisor, items: list[dict[str, Any]], producer: Producer) -> Any:
        from workers.simulate import Audience, Totals

        def progress(totals: Totals) -> None:
            self._check(services)
            step(totals.pages)

        audience = Audience.load(EXAMPLES / "users.parquet", items, seed=1)
        with self._stage("pages read by simulated readers", self._pages) as step:
            totals = asyncio.run(
                audience.read(
                    f"http://127.0.0.1:{self._port}",
                    items,
                    producer,
                    pages=self._pages,
                    progress=progress,
                )
            )
        producer.flush(30)
        return totals

    @contextmanager
    def _stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar; the block moves it by calling what it gets with how much is done."""
        task = self._progress.add_task(name, total=total)
        began = time.monotonic()
        yield lambda done: self._progress.update(task, completed=done)
        self._progress.update(task, completed=total)
        if not self._console.is_terminal:  # a log file gets a line a stage
            self._console.print(f"✓ {name}: {total} in {time.monotonic() - began:.0f} s")

    def _check(self, services: Supervisor) -> None:
        """All services run, and have room."""
        services.check()
        check_space(self._folder, LEAST_LEFT_BYTES)

    def _wait(self, services: Supervisor, name: str, total: int, done: Callable[[], int]) -> None:
        """Until `done()` reaches `total`, for as long as all services run."""
        with self._stage(name, total) as step:
            now = 0
            while now < total:
                step(now)
                self._check(services)
                time.sleep(0.2)
                with suppress(Fault):  # a server that does not answer now may do so again
                    now = done()

    def _print(self, result: Result) -> None:
        table = Table(show_header=False, title="ICG Worker demo (readers and clicks are simulated)")
        rows = {
            "items": f"{result.items}",
            "covers": f"{result.covers}",
            "covers/s": f"{result.covers_per_second:.1f}",
            "first cover after the cold start": f"{result.first_cover_seconds:.1f} s",
            "all published at once; ready p50 / p95": (
                f"{result.publish_to_ready_p50_seconds:.1f} / {result.publish_to_ready_p95_seconds:.1f} s"
            ),
            "fetch of a page of 12, p50 / p95": f"{result.fetch_p50_ms:.0f} / {result.fetch_p95_ms:.0f} ms",
            "impressions / clicks": f"{result.simulated_impressions} / {result.simulated_clicks}",
            "events learned": f"{result.events_learned}",
            "release before → after": f"{result.release_before} → {result.release_after}",
            "dead letters": f"{result.dead_letters}",
            "whole run": f"{result.total_seconds:.0f} s",
        }
        for name, value in rows.items():
            table.add_row(name, value)
        self._console.print(table)

    def _stay(self, embedded: Embedded, services: Supervisor) -> None:
        self._console.print(
            f"Gallery: [bold]http://127.0.0.1:{self._port}/[/]\n"
            f"API: http://127.0.0.1:{self._port}/openapi.json\n"
            f"Logs: {self._folder / 'logs'}\n"
            f"In another terminal: [bold]source {self._folder / 'env'}[/]\n"
            "Ctrl-C ends everything.",
            soft_wrap=True,
        )
        try:
            while True:
                self._check(services)
                embedded.check()
                time.sleep(1)
        except KeyboardInterrupt:
            self._console.print("Ending …")


class Watch:
    """Follows `item-publish` and `cover-ready` from outside: which covers there are, and how long they took."""

    def __init__(self, settings: Settings, items: set[str], segments: set[str]) -> None:
        self._items = items
        self._segments = segments
        self._published = Follower(settings.kafka, ItemPublish.topic)
        self._ready = Follower(settings.kafka, CoverReady.topic)
        self._published_ms: dict[tuple[int, int], int] = {}
        self._ready_ms: dict[str, tuple[tuple[int, int], int]] = {}
        self._covers: dict[str, set[str]] = {}
        self.first_cover = 0.0

    def covers(self) -> int:
        """How many of the wanted covers (item x segment) are announced by now."""
        for message in self._published.poll(1000, 0.0):
            self._published_ms[message.partition, message.offset] = message.timestamp_ms
        for message in self._ready.poll(1000, 0.1):
            event = CoverReady.decode(message.value)
            if event.item_id in self._items and event.action == "ready":
                self.first_cover = self.first_cover or time.monotonic()
                source = event.source.partition, event.source.offset
                self._ready_ms.setdefault(event.item_id, (source, message.timestamp_ms))
                self._covers[event.item_id] = {cover.segment_id for cover in event.covers} & self._segments
        return sum(map(len, self._covers.values()))

    def latencies(self) -> list[float]:
        """Seconds from an item's publish event to its cover-ready, by the broker's clock."""
        return [
            (ready - self._published_ms[source]) / 1000
            for source, ready in self._ready_ms.values()
            if source in self._published_ms
        ]

    def span_seconds(self) -> float:
        """From the first publish event to the last cover-ready."""
        ready = [ms for _, ms in self._ready_ms.values()]
        return max(1, max(ready) - min(self._published_ms.values())) / 1000

    def close(self) -> None:
        self._published.close()
        self._ready.close()


def _learned(releases: Releases, before: Release, health: Mapping[str, str]) -> int:
    """0: no new preference revision yet; 1: released; 2: and swapped in by the cover worker."""
    current = releases.current()
    if current is None or current.parts["preference"] == before.parts["preference"]:
        return 0
    return 2 if probes.metric(health["covers"], "icg_release") >= current.number else 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_space(folder: Path, least: int) -> None:
    """
    Raises:
        DemoError: so many bytes are not free.
    """
    free = shutil.disk_usage(folder).free
    if free < least:
        raise DemoError(f"{folder}: {free / 2**20:,.0f} MiB free, {least / 2**20:,.0f} MiB needed")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
