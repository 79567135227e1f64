"""Ours to wait for: the broker or S3 hangs or loses answers. Nothing is lost, nothing is done twice."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.faults import clock
from workers.embedded import Embedded
from workers.events import ItemRefresh
from workers.exceptions import Conflict, FeatureFault, MessagingFault, StorageFault
from workers.features import Features
from workers.messaging import Consumer, Message, Producer
from workers.settings import S3, Feast, Kafka, environment
from workers.storage import ObjectStore, retrying

TOPIC = ItemRefresh.topic


class LossyWire:
    """Forwards TCP to a server and cuts the connection instead of the next `lose` answers: the requests were done."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lose = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._server)
            threading.Thread(target=self._up, args=(near, far), daemon=True).start()
            threading.Thread(target=self._down, args=(far, near), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        try:
            while data := near.recv(65536):
                far.sendall(data)
        except OSError:
            pass

    def _down(self, far: socket.socket, near: socket.socket) -> None:
        try:
            while data := far.recv(65536):
                while data.startswith(b"HTTP/1.1 100"):  # "100 Continue" is no answer yet
                    before, _, data = data.partition(b"\r\n\r\n")
                    near.sendall(before + b"\r\n\r\n")
                if data and self.lose > 0:
                    self.lose -= 1
                    break
                near.sendall(data)
        except OSError:
            pass
        for each in (near, far):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # `close` alone would wait for the other thread's read
            each.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def wire(s3: S3) -> Iterator[LossyWire]:
    url = urlsplit(s3.endpoint or "")
    wire = LossyWire((url.hostname or "", url.port or 80))
    yield wire
    wire.close()


@pytest.fixture
def lossy(store: ObjectStore, s3: S3, wire: LossyWire) -> ObjectStore:
    """The bucket of `store`, over the wire."""
    return ObjectStore(s3.model_copy(update={"endpoint": f"http://127.0.0.1:{wire.port}"}), timeout=20)


@pytest.mark.real("s3")
def test_a_swap_whose_answer_was_lost_is_known_as_done(store: ObjectStore, lossy: ObjectStore, wire: LossyWire) -> None:
    first = lossy.put_if("k", b"1", None)
    wire.lose = 1
    second = lossy.put_if("k", b"2", first)
    assert wire.lose == 0
    stored = store.get("k")
    assert stored is not None
    assert (stored.data, stored.etag) == (b"2", second)


@pytest.mark.real("s3")
def test_a_first_write_whose_answer_was_lost_is_known_as_done(lossy: ObjectStore, wire: LossyWire) -> None:
    wire.lose = 1
    etag = lossy.put_if("k", b"1", None)
    stored = lossy.get("k")
    assert stored is not None
    assert stored.etag == etag
    wire.lose = 1
    assert lossy.put_new("n", b"1", "text/plain") is False  # immutable: the bytes are there, whoever wrote them


@pytest.mark.real("s3")
def test_a_swap_that_stays_unsure_is_known_at_the_next_call(
    store: ObjectStore, lossy: ObjectStore, wire: LossyWire
) -> None:
    first = lossy.put_if("k", b"1", None)
    wire.lose = 3
    with pytest.raises(StorageFault):
        lossy.put_if("k", b"2", first)
    stored = store.get("k")
    assert stored is not None
    assert stored.data == b"2"
    assert lossy.put_if("k", b"2", first) == stored.etag


@pytest.mark.real("s3")
def test_another_ones_same_bytes_are_not_ours(store: ObjectStore, lossy: ObjectStore, wire: LossyWire) -> None:
    """Two who count from 1 to 2 write the same bytes; only one of them may believe that it did."""
    first = store.put_if("k", b"1", None)
    store.put_if("k", b"2", first)
    wire.lose = 1  # the answer that is lost is the refusal
    with pytest.raises(Conflict):
        lossy.put_if("k", b"2", first)


@pytest.mark.real("s3")
def test_a_counter_over_a_wire_that_loses_answers_counts_each_once(lossy: ObjectStore, wire: LossyWire) -> None:
    for number in range(6):
        wire.lose = number % 3
        lossy.update("counter", lambda data: str(int(data or b"0") + 1).encode())
    wire.lose = 0
    stored = lossy.get("counter")
    assert stored is not None
    assert stored.data == b"6"


def test_a_store_that_hangs_is_a_fault_and_then_goes_on(tmp_path: Path) -> None:
    with Embedded(tmp_path, parts=("s3",)) as servers:
        ObjectStore(servers.s3).put_new("k", b"1", "text/plain")
        store = ObjectStore(servers.s3, timeout=0.5, attempts=2)
        servers.pause_s3()
        assert not store.ping()
        with pytest.raises(StorageFault, match="get k"):
            store.get("k")
        with pytest.raises(StorageFault, match="put k"):
            store.put_if("k", b"2", None)
        faults: list[Exception] = []

        def seen(fault: Exception) -> None:
            faults.append(fault)
            servers.resume_s3()

        stored = retrying(lambda: store.get("k"), what="get k", on_retry=seen)
        assert stored is not None
        assert stored.data == b"1"
        assert faults  # one, where the machine is quick enough for half a second
        assert ObjectStore(servers.s3).ping()


@pytest.mark.slow
def test_a_broker_that_hangs_longer_than_the_session_loses_nothing(tmp_path: Path) -> None:
    with Embedded(tmp_path, parts=("kafka",)) as servers:
        producer = Producer(servers.kafka, "test")
        consumer = Consumer(servers.kafka, "group", [TOPIC])
        found: list[Message] = []
        place = producer.send(TOPIC, b"0", "k").result(20)
        while not found:
            found += consumer.poll(10, 0.2)
        consumer.commit({(TOPIC, place[0]): place[1] + 1})

        servers.pause_kafka()
        waiting = [producer.send(TOPIC, str(number).encode(), "k") for number in range(1, 21)]
        assert not producer.ping(0.5)
        with pytest.raises(MessagingFault):
            consumer.lag(timeout=0.5)
        end = time.monotonic() + servers.kafka.session_timeout_seconds + 2
        while time.monotonic() < end:
            assert consumer.poll(10, 0.2) == []
        assert not any(future.done() for future in waiting)
        servers.resume_kafka()

        offsets = [future.result(60)[1] for future in waiting]
        assert offsets == list(range(offsets[0], offsets[0] + 20))  # in order, none twice
        end = time.monotonic() + 60
        while len(found) < 21:
            assert time.monotonic() < end, [m.value for m in found]
            found += consumer.poll(10, 0.2)
        # The group may have been formed anew: then it goes on at its commit.
        assert list(dict.fromkeys(m.value for m in found)) == [str(number).encode() for number in range(21)]
        consumer.close()
        producer.close()


CLOCK_PUT_BACK = """
import sys, time
from pathlib import Path
from tests.faults.clock import Clock, follow
from workers.messaging import Producer
from workers.settings import settings

clock = Clock(Path(sys.argv[1]))
follow(sys.argv[1])
producer = Producer(settings().kafka, "test")
producer.send("item-publish", b"1").result(60)
clock.jump(3600)
time.sleep(3)  # every second librdkafka's main thread says until when it sleeps
clock.jump(0)
print(producer.send("item-refresh", b"2").result(60))
"""


@pytest.mark.slow
def test_a_producer_goes_on_after_the_clock_was_put_back(kafka: Kafka, tmp_path: Path) -> None:
    preload = clock.library(tmp_path)
    if preload is None:
        pytest.skip("no C compiler")
    done = subprocess.run(
        [sys.executable, "-c", CLOCK_PUT_BACK, str(tmp_path / "clock")],
        cwd=Path(__file__).parents[2],
        env=environment(kafka=kafka) | {"LD_PRELOAD": str(preload)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_locked_sqlite_file_is_a_fault_and_then_goes_on(feast_repo: Feast) -> None:
    features = Features(feast_repo, tries=1)
    row = {"user_id": "u", "segment_id": "s"}
    other = sqlite3.connect(feast_repo.repo / "data" / "online_store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(FeatureFault, match="push to user_segment: database is locked"):
        features.push("user_segment", [row])
    assert features.ping()  # readers go on: that is what the write-ahead log is for
    other.execute("ROLLBACK")
    features.push("user_segment", [row])
    assert features.read(["user_segment:segment_id"], [{"user_id": "u"}]) == [row]
    features.close()


def test_a_redis_that_is_not_there_is_a_fault(feast_repo: Feast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEAST_REDIS", "127.0.0.1:9")
    monkeypatch.setenv("FEAST_REGISTRY", str(feast_repo.repo / "data" / "registry.db"))
    features = Features(Feast(repo=feast_repo.repo, yaml=Feast().repo / "redis.yaml"), tries=2)
    assert not features.ping()
    with pytest.raises(FeatureFault, match="event times of user_segment"):
        features.push("user_segment", [{"user_id": "u", "segment_id": "s"}])
    features.close()


def test_a_store_that_was_never_applied_is_a_fault_that_says_so(tmp_path: Path) -> None:
    yaml = tmp_path / "feature_store.yaml"
    yaml.write_text((Feast().repo / "feature_store.yaml").read_text())
    with pytest.raises(FeatureFault, match="run `feast apply` first"):
        Features(Feast(repo=tmp_path, yaml=yaml))
