"""A person asks to be forgotten: no byte of any store says who it was, and what comes late brings nobody back."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.servers import Light
from tests.waiting import until
from workers import embeddings, forgetting, users
from workers.audit import service as audit
from workers.erased import Erased, user_key
from workers.events import BehaviorKind, UserBehavior, UserErasure
from workers.exceptions import Fault
from workers.features import Features
from workers.forgetting import Receipt
from workers.messaging import Follower, Message, Producer
from workers.people import service as people
from workers.records import sha256
from workers.settings import S3, Audit, Erasure, Feast, Kafka, Settings
from workers.storage import ObjectStore
from workers.tables import open_table
from workers.users import erase

ANN, BOB = "reader-ann-0017", "reader-bob-0042"
SPACE = sha256(b"a space")


@pytest.fixture
def settings(own_kafka: Kafka, s3: S3, feast_repo: Feast) -> Settings:
    quick = own_kafka.model_copy(update={"session_timeout_seconds": 2.0, "heartbeat_seconds": 0.3})
    return Settings(
        kafka=quick,
        s3=s3,
        feast=feast_repo,
        audit=Audit(batch_seconds=0.1, compact_files=3),
        erasure=Erasure(settle_seconds=4.0),
    )


@pytest.fixture
def running(settings: Settings, store: ObjectStore) -> Iterator[None]:
    """The services that keep something of people, as threads."""
    stop = threading.Event()
    services = [threading.Thread(target=service.run, args=(settings, stop)) for service in (audit, people)]
    for service in services:
        service.start()
    yield
    assert all(service.is_alive() for service in services)
    stop.set()
    for service in services:
        service.join(120)
    assert not any(service.is_alive() for service in services)


@pytest.fixture
def features(settings: Settings) -> Iterator[Features]:
    features = Features(settings.feast)
    yield features
    features.close()


def receipts(partition: int, offset: int) -> list[str]:
    """Of the two services that run here."""
    return users.receipts(partition, offset)[:2]


def behave(producer: Producer, user: str, name: str, count: int = 5) -> None:
    for k in range(count):
        event = UserBehavior(
            event_id=f"{user}.{name}.{k}",
            user_id=user,
            item_id="an-item",
            kind=BehaviorKind.IMPRESSION,
            page_id=base64.urlsafe_b64encode(user.encode()).decode().rstrip("="),
            time=datetime.now(UTC),
        )
        producer.send_event(event, event.event_id)
    producer.flush(30)


def rows_of(settings: Settings, user: str) -> int:
    table = open_table(settings.s3, UserBehavior.topic)
    if table is None:
        return 0
    key = user_key(settings.audit.user_key.get_secret_value(), user)
    try:
        return table.to_pyarrow_table(columns=["user_key"])["user_key"].to_pylist().count(key)
    except OSError:  # a file of this version was swept while we read it
        return -1


def spellings(settings: Settings, user: str) -> list[bytes]:
    key = user_key(settings.audit.user_key.get_secret_value(), user)
    return [
        spelling
        for raw in (user.encode(), key.encode())
        for spelling in (raw, raw.hex().encode(), base64.b64encode(raw)[:-3], base64.urlsafe_b64encode(raw)[:-3])
    ]


def unpacked(key: str, data: bytes) -> list[bytes]:
    """A file's bytes, and what they say once decompressed."""
    if key.endswith(".parquet"):
        file = pq.ParquetFile(io.BytesIO(data))
        return [data, repr(file.metadata.to_dict()).encode(), repr(file.read().to_pylist()).encode()]
    return [data, gzip.decompress(data)] if key.endswith(".gz") else [data]


def places(settings: Settings, store: ObjectStore, user: str) -> set[str]:
    """Where a store of ours spells the user: keys of S3, files of the feature store."""
    found = set()
    wanted = spellings(settings, user)
    for key in store.list(""):
        stored = store.get(key)
        if stored is None:  # swept while we looked
            continue
        texts = [key.encode(), *unpacked(key, stored.data)]
        if any(spelling in text for spelling in wanted for text in texts):
            found.add(key)
    for path in Path(settings.feast.repo).rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # SQLite's journals come and go
            data = path.read_bytes()
            if any(spelling in data for spelling in wanted):
                found.add(path.name)
    return found


def test_nothing_names_who_was_erased_and_late_events_bring_nobody_back(
    settings: Settings, store: ObjectStore, features: Features, running: None
):
    vectors = np.eye(2, 4, dtype=np.float32)
    for space in (SPACE, sha256(b"an older space")):
        embeddings.add(store, space, embeddings.Users([ANN, BOB], vectors))
    for user in (ANN, BOB):
        features.push("user_embedding", [{"user_id": user, "embedding": [1.0, 0], "space": SPACE}])
        features.push("user_taste", [{"user_id": user, "residual": [0.1, 0], "space": SPACE, "pairs": 3}])
        features.push("user_segment", [{"user_id": user, "segment_id": "s-1", "parent": "", "segments": SPACE}])
    producer = Producer(settings.kafka, "test")
    for name in ("a", "b", "c", "d"):  # several files, so that some are compacted away
        for user in (ANN, BOB):
            behave(producer, user, name)
        wanted = 5 * ("abcd".index(name) + 1)
        until(lambda wanted=wanted: rows_of(settings, ANN) == wanted == rows_of(settings, BOB), what="rows")
    held = places(settings, store, ANN)
    # The search finds what is there: it would fail otherwise.
    assert {"audit", "users"} <= {key.split("/")[0] for key in held}
    assert any(name.endswith((".db", "-wal")) for name in held)

    partition, offset = erase(settings, ANN)
    until(lambda: rows_of(settings, ANN) == 0, what="the first pass")
    behave(producer, ANN, "late")  # before the second pass, and
    until(lambda: all(store.exists(key) for key in receipts(partition, offset)), what="receipts")
    behave(producer, ANN, "later")  # after it
    behave(producer, BOB, "later")
    until(lambda: rows_of(settings, BOB) == 25, what="rows of the others")

    assert places(settings, store, ANN) == set()
    assert {key.split("/")[0] for key in places(settings, store, BOB)} >= {"audit", "users"}
    assert features.read(["user_segment:segment_id"], [{"user_id": ANN}, {"user_id": BOB}])[1]["segment_id"] == "s-1"
    found = [Receipt.decode(stored.data) for key in receipts(partition, offset) if (stored := store.get(key))]
    assert [receipt.service for receipt in found] == ["people", "audit"]
    assert found[0].removed == {"users/embeddings": 2}
    assert found[1].removed["audit/user-behavior"] >= 20
    assert (found[0].source.topic, found[0].source.offset) == (UserErasure.topic, offset)
    producer.close()


def test_what_is_no_erasure_is_a_dead_letter_and_holds_up_nobody(settings, store, features, running):
    producer = Producer(settings.kafka, "test")
    producer.send(UserErasure.topic, b'{"user_id": "a/b"}', key="k", partition=0).result(30)
    _, offset = producer.send(
        UserErasure.topic, UserErasure(user_id=BOB).model_dump_json().encode(), partition=0
    ).result(30)
    until(lambda: all(store.exists(key) for key in receipts(0, offset)), what="receipts")
    letters = Follower(settings.kafka, "dead-letters")
    reasons: list[bytes] = []

    def both() -> bool:
        reasons.extend(message.headers["dlq_reason"] for message in letters.poll(10, 0.2))
        return len(reasons) >= 2  # one a service

    until(both, what="dead letters")
    assert all(b"user_id" in reason for reason in reasons)
    letters.close()
    producer.close()


def test_a_broker_that_is_away_while_an_erasure_is_refused_is_waited_for(
    feast_repo: Feast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "DELIVERY_SECONDS", 0.5)
    with Light(tmp_path / "servers") as servers:
        settings = Settings(kafka=servers.kafka, s3=servers.s3, feast=feast_repo)
        away: list[Fault] = []
        erased = Erased(settings, ObjectStore(settings.s3))
        refusing = forgetting.Forgetting(settings, "audit", lambda _: {}, erased, threading.Event(), away.append)
        servers.pause_kafka()
        thread = threading.Thread(target=refusing._refuse, args=(Message(UserErasure.topic, 0, 7, b"k", b"?"), "why"))
        thread.start()
        until(lambda: bool(away), what="it waits")
        servers.resume_kafka()
        thread.join(90)
        assert not thread.is_alive()
        letters = Follower(settings.kafka, "dead-letters")
        assert [message.headers["dlq_offset"] for message in letters.poll(10, 60)] == [b"7"]
        letters.close()
