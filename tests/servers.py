"""Real servers for the tests: Apache Kafka, an S3 server and Redis, one set a test process.

Each comes from the first of these that there is:

1. an address: `ICG_TEST_KAFKA` (host:port, plain text), `ICG_TEST_S3` (http(s)://access:secret@host:port),
   `ICG_TEST_REDIS` (host:port);
2. a container, by testcontainers, where a Docker engine answers that has the image or can pull it;
3. a process (`infra.servers`), where it is installed; under `CI` it is installed.

Where none is, tests on real servers are skipped; under `CI` they fail.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from pydantic import SecretStr

import infra.servers.kafka
import infra.servers.redis
import infra.servers.s3
from infra.servers import install
from infra.servers.process import Process, free_port
from workers.embedded import Embedded
from workers.messaging import client_config, wait_for_broker
from workers.settings import S3, Feast, Kafka
from workers.storage import ObjectStore
from workers.topics import TOPICS, ensure_topics

IMAGES = {"kafka": "apache/kafka:4.1.0", "s3": "versity/versitygw:v1.8.0", "redis": "redis:7"}
CI = bool(os.environ.get("CI"))


@cache
def engine_has(part: str) -> bool:
    """Whether a Docker engine answers, and has the image or gets it."""
    if shutil.which("docker") is None:
        return False

    def answers(*command: str, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(["docker", *command], capture_output=True, timeout=seconds).returncode == 0
        return False

    image = IMAGES[part]
    return answers("info", seconds=5) and (
        answers("image", "inspect", image, seconds=10) or answers("pull", "--quiet", image, seconds=180)
    )


def missing(parts: Iterable[str]) -> list[str]:
    """Which of kafka, s3 and redis cannot be had without installing something."""
    absent = install.missing()
    return [
        part
        for part in parts
        if not os.environ.get(f"ICG_TEST_{part.upper()}") and part in absent and not engine_has(part)
    ]


def empty(kafka: Kafka) -> None:
    """Take topics, groups and offsets away, and make the topics anew, of 4 partitions."""
    client = AdminClient(client_config(kafka))
    until = time.monotonic() + 90
    while True:
        groups = [group.group_id for group in client.list_consumer_groups().result(60).valid or ()]
        topics = [topic for topic in client.list_topics(timeout=60).topics if topic in TOPICS]
        if not groups and not topics:
            break
        deleting = [*(client.delete_consumer_groups(groups) if groups else {}).values()]
        deleting += (client.delete_topics(topics) if topics else {}).values()
        for future in deleting:
            with contextlib.suppress(KafkaException):  # a group whose members are just leaving: again
                future.result(60)
        assert time.monotonic() < until, f"still there: {groups} {topics}"
        time.sleep(0.1)
    make_topics(kafka)


def make_topics(kafka: Kafka) -> None:
    """Make the topics, of 4 partitions; return once the broker lists them, which may be a second later."""
    ensure_topics(kafka, partitions=4)
    client = AdminClient(client_config(kafka))
    until = time.monotonic() + 60
    while absent := set(TOPICS) - client.list_topics(timeout=60).topics.keys():
        assert time.monotonic() < until, f"made and not listed: {absent}"
        time.sleep(0.05)


class Light(Embedded):
    """For tests that are about no server: the embedded broker, and versitygw in moto's place where it is installed.

    moto took a ninth of all the CPU that the tests took.
    """

    def __init__(self, folder: Path, parts: Iterable[str] = ("kafka", "s3")) -> None:
        wanted = set(parts)
        self._gateway: infra.servers.s3.S3 | None = None
        if "s3" not in install.missing():
            wanted.discard("s3")
        super().__init__(folder, parts=wanted)
        if wanted != set(parts):
            self._gateway = infra.servers.s3.S3(folder / "s3")
            self._gateway.start()
            self._gateway.wait()
            access, secret = SecretStr(self._gateway.access_key), SecretStr(self._gateway.secret_key)
            self.s3 = S3(endpoint=self._gateway.address, access_key=access, secret_key=secret)
            ObjectStore(self.s3).ensure_bucket()

    def pause_s3(self) -> None:
        self._gateway.pause() if self._gateway else super().pause_s3()

    def resume_s3(self) -> None:
        self._gateway.resume() if self._gateway else super().resume_s3()

    def close(self) -> None:
        if self._gateway is not None:
            self._gateway.kill()
        super().close()


class Real:
    """Real servers, each started when first asked for. Has what tests use of `workers.embedded.Embedded`.

    Begin from the main thread: the processes end with the thread that started them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._closing: list[Callable[[], None]] = []
        self._processes: dict[str, Process | _Container] = {}
        self._kafka: Kafka | None = None
        self._s3: S3 | None = None
        self._redis: str | None = None
        self._bucket = "icg"
        self.feast = Feast()

    @property
    def kafka(self) -> Kafka:
        if self._kafka is None:
            self._kafka = Kafka(bootstrap_servers=os.environ.get("ICG_TEST_KAFKA") or self._start_kafka())
            wait_for_broker(self._kafka, 120)
            make_topics(self._kafka)
        return self._kafka

    @property
    def s3(self) -> S3:
        """Of a bucket that the last `fresh` has named, to be made by whoever uses it."""
        if self._s3 is None:
            url = urlsplit(os.environ.get("ICG_TEST_S3") or self._start_s3())
            self._s3 = S3(
                endpoint=f"{url.scheme}://{url.hostname}:{url.port}",
                access_key=SecretStr(url.username or ""),
                secret_key=SecretStr(url.password or ""),
            )
        return self._s3.model_copy(update={"bucket": self._bucket})

    @property
    def redis(self) -> str:
        if self._redis is None:
            self._redis = os.environ.get("ICG_TEST_REDIS") or self._start_redis()
        return self._redis

    def fresh(self) -> Self:
        """As if started now: an empty broker, a bucket that is not there yet. Nobody may use them meanwhile."""
        self.empty_kafka()
        self._bucket = f"test-{uuid.uuid4().hex[:16]}"
        return self

    def empty_kafka(self) -> Kafka:
        """The broker without topics, groups and offsets of tests before."""
        empty(self.kafka)
        return self.kafka

    def pause_kafka(self) -> None:
        self._processes["kafka"].pause()

    def resume_kafka(self) -> None:
        self._processes["kafka"].resume()

    def pause_s3(self) -> None:
        self._processes["s3"].pause()

    def resume_s3(self) -> None:
        self._processes["s3"].resume()

    def close(self) -> None:
        for close in reversed(self._closing):
            close()

    def _process(self, part: str, server: Process) -> None:
        server.start()
        self._closing.append(server.kill)
        server.wait()
        self._processes[part] = server

    def _start_kafka(self) -> str:
        if engine_has("kafka"):
            return self._kafka_container()
        server = infra.servers.kafka.Kafka(self._folder / "kafka")
        self._process("kafka", server)
        return server.address

    def _start_s3(self) -> str:
        if engine_has("s3"):
            variables = {"ROOT_ACCESS_KEY": "icg-test", "ROOT_SECRET_KEY": "icg-test-secret"}
            return f"http://icg-test:icg-test-secret@{self._container('s3', 7070, variables, 'posix /tmp')}"
        server = infra.servers.s3.S3(self._folder / "s3")
        self._process("s3", server)
        return f"http://{server.access_key}:{server.secret_key}@127.0.0.1:{server.port}"

    def _start_redis(self) -> str:
        if engine_has("redis"):
            return self._container("redis", 6379, {}, None)
        server = infra.servers.redis.Redis(self._folder / "redis")
        self._process("redis", server)
        return server.address

    def _kafka_container(self) -> str:
        # Clients are told the address that is mapped, so it has to be known before the start. testcontainers' own
        # KafkaContainer starts another image.
        port = free_port()
        variables = {
            "KAFKA_NODE_ID": "1",
            "KAFKA_PROCESS_ROLES": "broker,controller",
            "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
            "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
            "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
            "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
            "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
            "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "200",
            "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
            "KAFKA_HEAP_OPTS": "-Xmx256m",
        }
        return self._container("kafka", 9092, variables, None, port)

    def _container(
        self, part: str, inside: int, variables: dict[str, str], command: str | None, outside: int | None = None
    ) -> str:
        from testcontainers.core.container import DockerContainer

        container = DockerContainer(IMAGES[part])
        for name, value in variables.items():
            container.with_env(name, value)
        if command is not None:
            container.with_command(command)
        container.with_bind_ports(inside, outside) if outside else container.with_exposed_ports(inside)
        container.start()
        self._closing.append(container.stop)
        self._processes[part] = _Container(container.get_wrapped_container().id)
        port = int(outside or container.get_exposed_port(inside))
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return f"127.0.0.1:{port}"
            assert time.monotonic() < until, f"{IMAGES[part]} does not serve: {container.get_logs()[1][-500:]!r}"
            time.sleep(0.1)


class _Container:
    def __init__(self, identity: str) -> None:
        self._identity = identity

    def pause(self) -> None:
        subprocess.run(["docker", "pause", self._identity], check=True, capture_output=True)

    def resume(self) -> None:
        subprocess.run(["docker", "unpause", self._identity], check=True, capture_output=True)
