"""One run: events go in, faults happen, everything that came of it is gathered as evidence."""

from __future__ import annotations

import contextlib
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from bench.stream_world import World
from tests.faults.audited import logged, rows_found, rows_wanted
from tests.faults.checker import Evidence, Findings, Source, Twin, check
from tests.faults.clock import JUMPS
from tests.faults.people import SETTINGS, People
from tests.faults.stage import MORE_SEGMENTS, SEGMENTS, SMALL, Servers, Service, put_pictures, redis_store
from tests.faults.traffic import Traffic
from tests.faults.watching import Answers, Manifests
from tests.servers import Light
from tests.zygote import Zygote
from workers.events import Event, ItemPublish, Outcome, UserBehavior
from workers.exceptions import Fault
from workers.preferences.checkpoint import Checkpoints
from workers.records import Manifest, Sidecar, sha256
from workers.settings import Feast
from workers.storage import ObjectStore

PATIENCE = 120.0
"""Seconds after a fault in which everything has to be well again."""
DRAIN = 60.0
"""Seconds from SIGTERM to the end of any service, on a machine that has much else to do."""
COVERS = ("covers-1", "covers-2")
ALL = (*COVERS, "audit", "preferences", "api")
SPARE = ("covers-3", "audit-2", "preferences-2")
"""Those that join and leave."""
AUDIT = {"ICG_AUDIT_BATCH_SECONDS": "0.5", "ICG_AUDIT_COMPACT_FILES": "20"}


@dataclass
class Report:
    findings: Findings
    faults: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    """Seconds from each fault's end until an event published then had its outcome."""
    ready: list[float] = field(default_factory=list)
    """Seconds from each fault's end until every service was ready."""
    in_flight: list[int] = field(default_factory=list)
    """Events without an outcome at each fault's beginning."""
    stuck: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """With which status services ended by themselves; they were started again."""
    published: int = 0
    events: int = 0
    compared: int = 0
    """Covers compared with the undisturbed run."""
    audited: int = 0
    learned: int = 0
    answers: int = 0

    def figures(self) -> dict[str, float]:
        return {name: float(len(lines)) for name, lines in self.findings.items()} | {
            "stuck": float(len(self.stuck)),
            "recovery_p95_s": _p95(self.recoveries),
            "ready_p95_s": _p95(self.ready),
            "faults": float(len(self.faults)),
            "in_flight_mean": round(statistics.fmean(self.in_flight or [0]), 1),
            "publishes": float(self.published),
            "events": float(self.events),
            "covers_compared": float(self.compared),
            "rows_audited": float(self.audited),
            "behaviour_learned": float(self.learned),
            "answers": float(self.answers),
            "ended_by_themselves": float(len(self.ends)),
        }


class Run:
    """The pipeline under faults. Its `evidence` is what `check` judges."""

    def __init__(
        self,
        folder: Path,
        servers: Servers,
        applied: Feast,
        model: Path,
        zygote: Zygote,
        seed: int,
        *,
        bug: str = "",
        services: Sequence[str] = ALL,
    ) -> None:
        folder.mkdir(parents=True)
        self.servers = servers
        self.random = random.Random(seed)
        store = servers.direct.model_copy(update={"bucket": f"faults-{folder.name.lower()}"})
        feast = redis_store(folder / "feast", servers.proxies["redis"].address, applied)
        self.world = World(folder, servers.kafka, store, feast, model, SMALL)
        put_pictures(self.world)
        self.world.release(SEGMENTS)
        self.traffic = Traffic(seed, self.world.store.bucket)
        through = {"ICG_S3_ENDPOINT": f"http://{servers.proxies['s3'].address}"}
        environment = self.world.environment() | through | SETTINGS | AUDIT

        def service(name: str) -> Service:
            return Service(name, zygote, environment, folder, bug, clock=zygote.preloaded)

        self.services = [service(name) for name in services]
        kinds = {each.kind for each in self.services}
        self.spares = [service(name) for name in SPARE if name.partition("-")[0] in kinds]
        self.people = People(self.world, model, seed) if "preferences" in kinds else None
        self.watcher = Manifests(store)
        self.reader = next((Answers(each.address) for each in self.services if each.kind == "api"), None)
        self.sent: list[tuple[Event | bytes, Future[Source]]] = []
        self.report = Report({})
        self._releases: dict[int, tuple[str, ...]] = {}

    def start(self) -> None:
        for service in self.services:
            service.start()

    def send(self, event: Event | bytes) -> Future[Source]:
        """To the broker as soon as it takes it."""
        sent = (
            self.world.send_soon(event)
            if isinstance(event, Event)
            else _as_source(self.world.producer.send(ItemPublish.topic, event, "nonsense"))
        )
        self.sent.append((event, sent))
        if self.reader is not None and isinstance(event, ItemPublish):
            if event.item_id in self.reader.asked:
                self.reader.asked.remove(event.item_id)
            self.reader.asked.append(event.item_id)
        return sent

    def read_pages(self, pages: int) -> None:
        """So many people look at something, and some of them click."""
        if self.people is not None:
            for user, value in self.people.some(pages):
                self.world.producer.send(UserBehavior.topic, value, user)

    def release_more(self) -> None:
        """A second release, with one segment more. At this place of the stream in the undisturbed run, too."""
        self._releases[len(self.sent)] = MORE_SEGMENTS
        _release(self.world, MORE_SEGMENTS)
        self.traffic.release = 2

    def look(self) -> None:
        self.world.look(0.05)
        for events in self.world.ready.values():
            if events[0].outcome is Outcome.DRAWN:
                self.traffic.settled.add(events[0].item_id)
        for service in self.services:
            service.keep()

    def wait(self, done: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                return False
            self.look()
        return True

    def ended(self, sent: Future[Source]) -> bool:
        return sent.done() and (sent.result() in self.world.ready or sent.result() in self.world.dead)

    def in_flight(self) -> list[str]:
        """Items whose newest publishes have no outcome yet."""
        return [
            event.item_id
            for event, sent in self.sent[-40:]
            if isinstance(event, ItemPublish) and event.action == "publish" and not self.ended(sent)
        ]

    def disturb(self, fault: str | None = None) -> None:
        """One fault at a random moment, and the time until an event published at its end has its outcome."""
        # Somewhere between the first and the last of what has just been sent: most states are those of work.
        pending = [sent for _, sent in self.sent[-100:] if not self.ended(sent)]
        left = self.random.randrange(len(pending) + 1)
        self.wait(lambda: sum(not self.ended(sent) for sent in pending) <= left, 20)
        self.report.in_flight.append(sum(not self.ended(sent) for sent in pending))
        with self.fault(fault or self.random.choice(self.faults())) as name:
            self.report.faults.append(name)
        probe = self.send(self.traffic.publish())
        begun = time.monotonic()
        if self.wait(lambda: self.ended(probe)):
            self.report.recoveries.append(time.monotonic() - begun)
        else:
            self.report.stuck.append(f"{name}: an event published after it has no outcome within {PATIENCE:g} s")
        if self.wait(lambda: all(service.ready() for service in self.services)):
            self.report.ready.append(time.monotonic() - begun)
        else:
            late = ", ".join(service.name for service in self.services if not service.ready())
            self.report.stuck.append(f"{name}: {late} not ready within {PATIENCE:g} s")

    def faults(self) -> list[str]:
        """Everything that can go wrong. Services twice: theirs are most of the states there are."""
        services = [f"{how} {each.name}" for each in self.services for how in ("kill", "pause")]
        services += [f"{how} {each.name}" for each in self.services for how in ("leave", "jump") if self._can(how)]
        services += [f"join {each.name}" for each in self.spares]
        servers = [f"{how} {name}" for name in self.servers.processes for how in ("kill", "pause")]
        network = [f"{how} {name}" for name in self.servers.proxies for how in ("cut", "hang", "slow")]
        full = ["full s3"] if self._can("full") else []
        return [*services, *services, *servers, *network, *full]

    def _can(self, how: str) -> bool:
        """Whether this machine has what a kind of fault needs."""
        if how == "jump":
            return all(service.clock is not None for service in self.services)
        return how != "full" or self.servers.disk is not None

    @contextlib.contextmanager
    def fault(self, fault: str, seconds: float | None = None) -> Iterator[str]:
        """One of `faults`; it is over when the block is.

        Args:
            seconds: how long; by chance, when absent.
        """
        lasts = seconds or self.random.choice((0.2, 1.0, 2.5, 5.0)) * self.random.uniform(0.5, 1.5)
        begin, end = self._steps(fault)
        said = begin()
        # Whoever stands still in the middle of an item, or is away, must not undo what comes now.
        for item_id in dict.fromkeys(self.in_flight()[:2]):
            self.send(self.traffic.again(item_id))
        self.rest(lasts)
        yield f"{fault}{f' {said}' if said else ''} for {lasts:.1f} s"
        end()

    def _steps(self, fault: str) -> tuple[Callable[[], object], Callable[[], object]]:
        """How a fault begins, saying more about it perhaps, and how it ends."""
        how, _, name = fault.partition(" ")
        service = next((each for each in (*self.services, *self.spares) if each.name == name), None)
        server, proxy, disk = self.servers.processes.get(name), self.servers.proxies.get(name), self.servers.disk
        if how == "kill" and server is not None:
            return server.kill, lambda: (server.start(), server.wait())
        if how == "pause" and (target := service or server) is not None:
            return target.pause, target.resume
        if how == "full" and disk is not None:
            return disk.fill, disk.free
        if proxy is not None and how in {"cut", "hang", "slow"}:
            return {"cut": proxy.cut, "hang": proxy.hang, "slow": lambda: proxy.slow(0.2)}[how], proxy.heal
        assert service is not None, f"no fault {fault!r}"
        clock = service.clock
        if how == "jump" and clock is not None:
            seconds = self.random.choice(JUMPS)
            return lambda: clock.jump(seconds) or f"by {seconds} s", lambda: clock.jump(0)
        return {
            "kill": (service.kill, service.start),
            "leave": (lambda: self._drain(service), service.start),
            "join": (lambda: self._join(service), lambda: self._drain(service)),
        }[how]

    def _join(self, service: Service) -> None:
        service.start()
        self.wait(service.ready)

    def _drain(self, service: Service) -> None:
        if (wrong := service.drain(DRAIN)) is not None:
            self.report.stuck.append(wrong)

    def rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.world.look(0.02)
            for service in self.services:
                service.keep()

    def finish(self, compare: Callable[[Run], Twin] | None = None, patience: float = PATIENCE) -> Report:
        """Wait for what is left, end the services, gather the evidence and judge it.

        Args:
            compare: makes the undisturbed run's covers, see `undisturbed`.
            patience: seconds for what has not ended yet.
        """
        by_kind = {each.kind: each for each in self.services}
        if "covers" in by_kind:
            self.wait(lambda: all(self.ended(sent) for _, sent in self.sent), patience)
        for service in self.services:
            service.keep()
            if service.kind in {"covers", "api"}:
                service.kill()
        if "preferences" in by_kind:
            self._finish_learning(by_kind["preferences"], patience)
        wanted = rows_wanted(self.world.settings.kafka) if "audit" in by_kind else {}
        if wanted:
            self.wait(lambda: sum(rows_found(self.world.settings.s3).values()) >= sum(wanted.values()), patience)
            self._drain(by_kind["audit"])
        for watcher in (self.watcher, self.reader):
            if watcher is not None:
                watcher.close()
        self.watcher.look()
        twin = compare(self) if compare else Twin()
        evidence = self._evidence(twin)
        evidence.rows_wanted = wanted
        evidence.rows_found = rows_found(self.world.settings.s3) if wanted else {}
        self.report.findings = check(evidence)
        self.report.audited = sum(evidence.rows_found.values())
        self.report.learned = sum(learned.offset for learned in evidence.learned.values())
        self.report.answers = sum(map(len, evidence.answers.values()))
        self.report.compared = len(twin.objects.keys() & evidence.objects.keys())
        self.report.published = sum(
            isinstance(event, ItemPublish) and event.action == "publish" for event, _ in self.sent
        )
        self.report.events = len(self.sent)
        self.report.ends = [status for service in self.services for status in service.ends]
        return self.report

    def _finish_learning(self, service: Service, patience: float) -> None:
        """It writes its state down when it ends; until then it has to have read everything."""
        ends = logged(self.world.settings.kafka, UserBehavior.topic)
        checkpoints = Checkpoints(self.world.store)

        def complete() -> bool:
            return all(
                (found := checkpoints.newest(partition)) is not None
                and found[0] >= (messages[-1].offset() + 1 if messages else 0)
                for partition, messages in ends.items()
            )

        until = time.monotonic() + patience
        while True:
            self.wait(service.ready, patience)
            self.rest(3)
            self._drain(service)
            if complete() or time.monotonic() > until:
                return
            service.start()

    def _evidence(self, twin: Twin) -> Evidence:
        store = ObjectStore(self.world.settings.s3)
        found = Evidence(ready=self.world.ready, dead=self.world.dead, wanted=self.traffic.items, twin=twin)
        for event, sent in self.sent:
            (found.valid if isinstance(event, Event) else found.nonsense).add(sent.result(PATIENCE))
        found.manifests = manifests = manifests_of(self.world, self.traffic.items)
        found.objects = objects_of(store)
        found.sidecars = [
            Sidecar.decode(stored.data)
            for item_id in manifests
            for key in store.list(f"covers/{item_id}/")
            if key.endswith(".json") and (stored := store.get(key)) is not None
        ]
        if self.people is not None:
            found.learned = self.people.learned(logged(self.world.settings.kafka, UserBehavior.topic))
        if self.reader is not None:
            found.answers = self.reader.seen
        found.seen = self.watcher.seen
        names = ["item_covers:generation", "item_covers:state"]
        rows = self.world.features.read(names, [{"item_id": item_id} for item_id in manifests])
        found.rows = {row["item_id"]: (row["generation"], row["state"]) for row in rows}
        return found

    def close(self) -> None:
        for service in (*self.services, *self.spares):
            with contextlib.suppress(Exception):
                service.kill()
        for watcher in (self.watcher, self.reader):
            if watcher is not None:
                watcher.close()
        self.world.close()

    def empty(self) -> None:
        """Delete every object, for a run on servers that others use after it: their disk is small."""
        with contextlib.suppress(Fault):
            for key in list(self.world.store.list("")):
                self.world.store.delete(key)


def _p95(seconds: Sequence[float]) -> float:
    return round(statistics.quantiles(sorted(seconds), n=20, method="inclusive")[-1], 2) if len(seconds) > 1 else 0.0


def _as_source(sent: Future[tuple[int, int]]) -> Future[Source]:
    source: Future[Source] = Future()
    sent.add_done_callback(lambda done: source.set_result((ItemPublish.topic, *done.result())))
    return source


def _release(world: World, segments: tuple[str, ...]) -> None:
    world.revisions["segments"] = world.put_segments(segments)
    world.releases.publish({"segments": world.revisions["segments"]}, "faults", "segments")


def objects_of(store: ObjectStore) -> dict[str, str]:
    """sha256 of each cover's bytes, by cover_id."""
    return {
        key.rsplit("/", 1)[1].removesuffix(".webp"): sha256(stored.data)
        for key in store.list("covers/")
        if key.endswith(".webp") and (stored := store.get(key)) is not None
    }


def manifests_of(world: World, items: Iterable[str]) -> dict[str, Manifest]:
    found = ((item_id, world.manifest(item_id)) for item_id in items)
    return {item_id: manifest for item_id, manifest in found if manifest is not None}


def undisturbed(run: Run, folder: Path, applied: Feast, zygote: Zygote) -> Twin:
    """The same events, in the same order, on embedded servers that nothing happens to."""
    with Light(folder / "servers") as servers:
        shutil.copytree(applied.repo, folder / "feast")
        feast = Feast(repo=folder / "feast", yaml=folder / "feast" / "feature_store.yaml")
        s3 = servers.s3.model_copy(update={"bucket": run.world.store.bucket})  # it is in the addresses of pictures
        world = World(folder, servers.kafka, s3, feast, run.world.model, SMALL)
        put_pictures(world)
        world.release(SEGMENTS)
        child = zygote.start("covers", [], world.environment(), folder / "covers.log")
        with child.running():
            sources = []
            for index, (event, _) in enumerate(run.sent):
                if index in run._releases:
                    _release(world, run._releases[index])
                if isinstance(event, Event):
                    sources.append(world.send(event))
            world.wait(sources, 3600, child.check)
        found = Twin(objects_of(world.store), manifests_of(world, run.traffic.items))
        world.close()
        return found
