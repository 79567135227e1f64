"""The audit service as a process of its own: killed, restarted, without S3, each message is a row once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import confluent_kafka
import httpx
import pytest
from confluent_kafka import TopicPartition

from infra.servers.process import free_port
from tests.servers import Light
from tests.zygote import Child, Zygote
from workers.audit.service import GROUP
from workers.events import BehaviorKind, ItemPublish, UserBehavior
from workers.messaging import Producer, client_config
from workers.settings import S3, Kafka, environment
from workers.tables import open_table

KILLED_BETWEEN = """
import os, signal, sys
from workers.audit.service import GROUP
from workers.audit.sink import TOPICS, Sink
from workers.messaging import Consumer
from workers.settings import settings

consumer = Consumer(settings().kafka, GROUP, TOPICS)
sink = Sink(settings())
while sink.messages < int(sys.argv[1]):
    sink.take(consumer.poll(10_000, 0.5))
sink.flush()
os.kill(os.getpid(), signal.SIGKILL)  # appended, not committed
"""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Light]:
    with Light(tmp_path / "servers") as embedded:
        # A killed member is missed after 3 s, so that restarts do not take the test's time; sooner, and a busy machine
        # would miss one that lives.
        quick = {"session_timeout_seconds": 3.0, "heartbeat_seconds": 0.5}
        embedded.kafka = embedded.kafka.model_copy(update=quick)
        yield embedded


class Service:
    """`icg run audit`, again and again."""

    def __init__(self, zygote: Zygote, kafka: Kafka, s3: S3, folder: Path) -> None:
        self._zygote = zygote
        self._environment = environment(kafka=kafka, s3=s3) | {
            "ICG_AUDIT_BATCH_ROWS": "200",
            "ICG_AUDIT_BATCH_SECONDS": "0.1",
            "ICG_AUDIT_COMPACT_FILES": "6",
        }
        self._log = folder / "audit.log"
        self.process: Child | None = None

    def start(self, **variables: str) -> None:
        self.process = self._zygote.start("audit", [], self._environment | variables, self._log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    def stop(self) -> int:
        assert self.process is not None
        return self.process.terminate()


@pytest.fixture
def service(servers: Light, light_zygote: Zygote, tmp_path: Path) -> Iterator[Service]:
    service = Service(light_zygote, servers.kafka, servers.s3, tmp_path)
    yield service
    if service.process is not None and service.process.status() is None:
        service.kill()


def produce(producer: Producer, count: int, start: int = 0) -> None:
    """Publishes and clicks, and every tenth a message that is neither."""
    for n in range(start, start + count):
        producer.send_event(ItemPublish(item_id=f"i{n}", item_version=1, title=f"Title {n}"), f"p{n}")
        click = UserBehavior(event_id=f"b{n}", user_id=f"u{n % 17}", item_id=f"i{n}", kind=BehaviorKind.CLICK)
        producer.send_event(click)
        if n % 10 == 0:
            producer.send("item-publish", b"not an event", key=f"i{n}")
    assert producer.flush(60) == 0


def wait(what: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.2)


def ids(s3: S3, topic: str, column: str = "event_id") -> list[str]:
    table = open_table(s3, topic)
    return [] if table is None else sorted(table.to_pyarrow_table(columns=[column])[column].to_pylist())


def offsets(s3: S3, topic: str) -> list[tuple[str, int, int]]:
    table = open_table(s3, topic)
    assert table is not None
    rows = table.to_pyarrow_table().to_pylist()
    return sorted((row.get("topic", topic), row["kafka_partition"], row["kafka_offset"]) for row in rows)


def assert_once(s3: S3, count: int) -> None:
    assert ids(s3, "item-publish") == sorted(f"p{n}" for n in range(count))
    assert ids(s3, "user-behavior") == sorted(f"b{n}" for n in range(count))
    bad = offsets(s3, "unreadable")
    assert len(bad) == len(set(bad)) == -(-count // 10)


def behind(kafka: Kafka) -> int:
    """Messages that the group has not committed, of the two topics that the tests write to."""
    client = confluent_kafka.Consumer(client_config(kafka) | {"group.id": GROUP})
    total = 0
    for topic in ("item-publish", "user-behavior"):
        for number in client.list_topics(topic, timeout=30).topics[topic].partitions:
            low, high = client.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
            at = client.committed([TopicPartition(topic, number)], timeout=30)[0].offset
            total += high - max(at, low)
    client.close()
    return total


def test_killed_between_append_and_commit(servers: Light, service: Service) -> None:
    producer = Producer(servers.kafka, "test")
    produce(producer, 100)
    variables = environment(kafka=servers.kafka, s3=servers.s3)
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN, "210"], env=variables, check=False, timeout=180)
    assert killed.returncode == -signal.SIGKILL
    assert_once(servers.s3, 100)

    service.start()
    produce(producer, 50, start=100)
    producer.close()
    wait(lambda: len(ids(servers.s3, "item-publish")) >= 150 and len(ids(servers.s3, "user-behavior")) >= 150)
    assert service.stop() == 0
    assert_once(servers.s3, 150)
    assert behind(servers.kafka) == 0


def test_killed_at_random_moments(servers: Light, service: Service) -> None:
    rng = random.Random(7)
    producer = Producer(servers.kafka, "test")
    count = 0
    for _ in range(2):
        service.start()
        before = len(ids(servers.s3, "item-publish"))
        produce(producer, 300, start=count)
        count += 300
        # Not before it works, then anywhere in its work.
        wait(lambda before=before: len(ids(servers.s3, "item-publish")) > before)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.4))
        service.kill()
    producer.close()
    service.start()
    wait(lambda: len(ids(servers.s3, "item-publish")) >= count and len(ids(servers.s3, "user-behavior")) >= count)
    assert service.stop() == 0
    assert_once(servers.s3, count)


def test_workers_that_come_and_go_share_the_partitions(
    servers: Light, service: Service, light_zygote: Zygote, tmp_path: Path
) -> None:
    producer = Producer(servers.kafka, "test")
    second = Service(light_zygote, servers.kafka, servers.s3, tmp_path)
    service.start()
    second.start()
    try:
        for start in range(0, 600, 100):
            produce(producer, 100, start=start)
            time.sleep(0.3)
        wait(lambda: len(ids(servers.s3, "item-publish")) > 300)
        assert service.stop() == 0
        produce(producer, 100, start=600)
        wait(lambda: len(ids(servers.s3, "item-publish")) >= 700 and len(ids(servers.s3, "user-behavior")) >= 700)
    finally:
        producer.close()
        assert second.stop() == 0
    assert_once(servers.s3, 700)
    assert behind(servers.kafka) == 0


def test_without_s3_it_waits_and_is_not_ready(servers: Light, service: Service, unused_port: int) -> None:
    def ready() -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{unused_port}/readyz", timeout=20).status_code
        except httpx.HTTPError:
            return 0

    producer = Producer(servers.kafka, "test")
    service.start(ICG_HEALTH_PORT=str(unused_port))
    wait(lambda: ready() == 200)
    servers.pause_s3()
    produce(producer, 30)
    wait(lambda: ready() == 503)
    assert service.process is not None
    assert service.process.status() is None
    servers.resume_s3()
    wait(lambda: ready() == 200)
    producer.close()
    wait(lambda: len(ids(servers.s3, "user-behavior")) >= 30)
    assert service.stop() == 0
    assert_once(servers.s3, 30)


@pytest.fixture
def unused_port() -> int:
    return free_port()
