"""What faults happen to: real servers behind proxies, the services, and whoever starts them again."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
from pydantic import SecretStr

from bench.stream_world import World, picture
from infra.servers import kafka, redis, s3
from infra.servers.process import Process, free_port
from tests.faults.clock import Clock
from tests.faults.disk import Disk
from tests.faults.proxy import Proxy
from tests.zygote import Child, Zygote
from workers.messaging import wait_for_broker
from workers.settings import S3, Covers, Feast, Kafka
from workers.topics import ensure_topics

log = logging.getLogger(__name__)

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
        self.disk: Disk | None = None
        """S3's, None where there can be none of its own."""
        try:
            self.disk = Disk(folder / "s3" / "buckets")
        except OSError as error:
            log.warning("no full disk on this machine: %s", error)
        store = s3.S3(folder / "s3", within=self.disk.within if self.disk else ())
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
        if self.disk is not None:
            self.disk.close()


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
    """One service, started again when it ends, as an orchestrator would."""

    def __init__(
        self,
        name: str,
        zygote: Zygote,
        environment: Mapping[str, str],
        folder: Path,
        bug: str = "",
        clock: bool = False,
        arguments: Sequence[str] = (),
    ) -> None:
        """
        Args:
            name: the service's own, and what tells it from others of its kind: covers-1.
            clock: it has one that may jump; only where the zygote has preloaded `clock.library`.
        """
        self.name, self.kind = name, name.partition("-")[0]
        self.log = folder / f"{name}.log"
        self.ends: list[int] = []
        """With which status it ended by itself."""
        self.address = f"http://127.0.0.1:{(port := free_port())}"
        self.clock = Clock(folder / f"{name}.clock") if clock else None
        self._zygote = zygote
        self._environment = {
            **environment,
            "ICG_CACHE": str(folder / name),
            "ICG_API_PORT" if self.kind == "api" else "ICG_HEALTH_PORT": str(port),
        }
        self._arguments = [*arguments, *([f"bug:{bug}"] if bug else [])]
        self._arguments += [f"clock:{self.clock.file}"] if self.clock else []
        self.child: Child | None = None

    def start(self) -> None:
        self.child = self._zygote.start(self.kind, self._arguments, self._environment, self.log)

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.status() is None

    def keep(self) -> None:
        """Start it again if it has ended by itself."""
        if self.child is not None and (status := self.child.status()) is not None:
            self.ends.append(status)
            self.start()

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.address}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        if self.running:
            assert self.child is not None
            self.child.kill()
        self.child = None  # until it is started again

    def drain(self, seconds: float) -> str | None:
        """SIGTERM; what is wrong with how it ended."""
        child, self.child = self.child, None
        if child is None or (status := child.status()) is not None:
            return None
        try:
            status = child.terminate(seconds)
        except TimeoutError:
            child.kill()
            return f"{self.name} still runs {seconds:g} s after SIGTERM"
        return f"{self.name} ended with status {status} after SIGTERM" if status else None

    def pause(self) -> None:
        if self.running:
            assert self.child is not None
            os.kill(self.child.pid, signal.SIGSTOP)

    def resume(self) -> None:
        if self.running:
            assert self.child is not None
            os.kill(self.child.pid, signal.SIGCONT)
