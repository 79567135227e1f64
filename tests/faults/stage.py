"""What faults happen to: real servers behind proxies, two covers services, and whoever starts them again."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from bench.stream_world import World, picture
from infra.servers import kafka, redis, s3
from infra.servers.process import Process, free_port
from tests.faults.proxy import Proxy
from tests.zygote import Child, Zygote
from workers.exceptions import Fault
from workers.messaging import wait_for_broker
from workers.records import Manifest
from workers.settings import S3, Covers, Feast, Kafka
from workers.storage import ObjectStore
from workers.topics import ensure_topics

SMALL = Covers(steps=2, width=32, height=32, slots=4, threads=1, batch_items=4)
SEGMENTS = ("a", "b")  # with neutral three, and the second release has one more
MORE_SEGMENTS = ("a", "b", "c")
PICTURES = 7


class Servers:
    """Kafka, S3 and Redis as processes; clients reach each through a proxy, which is what Kafka advertises."""

    def __init__(self, folder: Path, brokers: int = 1) -> None:
        self.proxies: dict[str, Proxy] = {}
        self.processes: dict[str, Process] = {}
        controllers = {node: free_port() for node in range(1, brokers + 1)}
        for node in controllers:
            name, port = f"kafka-{node}", free_port()
            self.proxies[name] = Proxy(port)
            self.processes[name] = kafka.Kafka(
                folder / "kafka", port=port, advertised=self.proxies[name].address, node=node, controllers=controllers
            )
        store = s3.S3(folder / "s3")
        self.processes["s3"], self.proxies["s3"] = store, Proxy(store.port)
        self.processes["redis"] = redis.Redis(folder / "redis")
        self.proxies["redis"] = Proxy(self.processes["redis"].port)
        self.direct = S3(
            endpoint=store.address, access_key=SecretStr(store.access_key), secret_key=SecretStr(store.secret_key)
        )
        """S3 past its proxy: what has become of things is seen even while the services see nothing."""
        addresses = ",".join(self.proxies[f"kafka-{node}"].address for node in controllers)
        # A killed member is missed after 3 s instead of 6.
        self.kafka = Kafka(bootstrap_servers=addresses, session_timeout_seconds=3.0, heartbeat_seconds=1.0)

    def start(self) -> None:
        for process in self.processes.values():
            process.start()
        for process in self.processes.values():
            process.wait()
        wait_for_broker(self.kafka, 120)
        ensure_topics(self.kafka, partitions=4)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
        for proxy in self.proxies.values():
            proxy.close()


def redis_store(folder: Path, address: str, applied: Feast) -> Feast:
    """A feature store on that Redis, with the registry of one that was applied."""
    shutil.copytree(applied.repo, folder)
    template = (Feast().repo / "redis.yaml").read_text()
    registry = str(folder / "data" / "registry.db")
    (folder / "redis.yaml").write_text(
        template.replace("${FEAST_REDIS}", address).replace("${FEAST_REGISTRY}", registry)
    )
    return Feast(repo=folder, yaml=folder / "redis.yaml")


def put_pictures(world: World) -> None:
    for number in range(PICTURES):
        world.store.put_new(f"art/{number}.png", picture(number), "image/png")


class Service:
    """One covers service, started again when it ends, as an orchestrator would."""

    def __init__(self, name: str, zygote: Zygote, environment: Mapping[str, str], folder: Path, bug: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.ends: list[int] = []
        """With which status it ended by itself."""
        self._zygote = zygote
        self._environment = dict(environment)
        self._bug = [f"bug:{bug}"] if bug else []
        self.child: Child | None = None

    def start(self) -> None:
        self.child = self._zygote.start("covers", self._bug, self._environment, self.log)

    def keep(self) -> None:
        """Start it again if it has ended by itself."""
        assert self.child is not None
        if (status := self.child.status()) is not None:
            self.ends.append(status)
            self.start()

    def kill(self) -> None:
        assert self.child is not None
        if self.child.status() is None:
            self.child.kill()

    def pause(self) -> None:
        assert self.child is not None
        if self.child.status() is None:
            os.kill(self.child.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.child is not None
        if self.child.status() is None:
            os.kill(self.child.pid, signal.SIGCONT)


class Watcher:
    """Looks at all manifests several times a second and keeps each that is new, in the order in which it saw them."""

    def __init__(self, store: S3) -> None:
        self.seen: dict[str, list[Manifest]] = {}
        self._store = ObjectStore(store, timeout=2.0, attempts=1)
        self._etags: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            try:
                self.look()
            except Fault:  # S3 is the one that is away
                continue

    def look(self) -> None:
        for each in list(self._store.listing("manifests/")):
            if self._etags.get(each.key) == each.etag:
                continue
            stored = self._store.get(each.key)
            if stored is not None and stored.etag != self._etags.get(each.key):
                self._etags[each.key] = stored.etag
                manifest = Manifest.decode(stored.data)
                self.seen.setdefault(manifest.item_id, []).append(manifest)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)
