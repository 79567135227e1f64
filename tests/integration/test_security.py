"""Servers that demand to be shown something: Kafka SASL/SCRAM and TLS, S3 TLS and keys, Redis TLS and a password.

Each client gets what it needs through the settings, and who shows the wrong thing is told so in one line.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from bench.stream_world import World, picture, publish
from infra.servers import install, kafka, redis, s3
from tests.certificates import Authority
from tests.servers import Real
from tests.zygote import Zygote
from workers.events import ItemRefresh, Outcome
from workers.exceptions import FeatureFault, MessagingFault, StorageFault
from workers.features import Features
from workers.messaging import Consumer, Follower, Producer, wait_for_broker
from workers.settings import S3, Covers, Feast, Kafka, environment
from workers.storage import ObjectStore
from workers.topics import ensure_topics

pytestmark = pytest.mark.real("kafka", "s3", "redis", only=True)

PASSWORD = "kafka-pass-5f1c"
SECRET_KEY = "s3-secret-key-77aa"
REDIS_PASSWORD = "redis-pass-90bd"
SMALL = Covers(steps=2, width=32, height=32, slots=4, threads=1, batch_items=4)


@dataclass
class Locked:
    """Settings with which everything opens, and the authority that others lack."""

    kafka: Kafka
    s3: S3
    redis: str
    authority: Authority


@pytest.fixture(scope="module")
def locked(adapter: str, _real: Real, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    """Processes of its own, in `CI` installed for it; servers that are known by an address do not stand in for them."""
    if absent := [part for part in install.missing() if os.environ.get(f"ICG_TEST_{part.upper()}")]:
        pytest.skip(f"{', '.join(absent)}: an address is given, and nothing is installed")
    folder = tmp_path_factory.mktemp("locked")
    authority = Authority(folder / "authority")
    broker = kafka.Kafka(
        folder / "kafka", access=kafka.Access(users={"icg": PASSWORD}, keystore=authority.keystore("kafka"))
    )
    store = s3.S3(folder / "s3", secret_key=SECRET_KEY, certificate=authority.server("s3"))
    online = redis.Redis(folder / "redis", password=REDIS_PASSWORD, certificate=authority.server("redis"))
    servers = (broker, store, online)
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        found = Locked(
            Kafka(
                bootstrap_servers=broker.address,
                security_protocol="SASL_SSL",
                sasl_mechanism="SCRAM-SHA-512",
                sasl_username="icg",
                sasl_password=SecretStr(PASSWORD),
                ssl_ca_location=authority.certificate,
            ),
            S3(
                endpoint=store.address,
                access_key=SecretStr(store.access_key),
                secret_key=SecretStr(SECRET_KEY),
                ca_bundle=authority.certificate,
            ),
            f"{online.address},ssl=true,ssl_ca_certs={authority.certificate},password={REDIS_PASSWORD}",
            authority,
        )
        wait_for_broker(found.kafka, 120)
        ensure_topics(found.kafka, partitions=4)
        ObjectStore(found.s3).ensure_bucket()
        yield found
    finally:
        for server in servers:
            server.kill()


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """The certificate of an authority that signed nothing here."""
    return Authority(tmp_path / "stranger").certificate


def feast(applied: Feast, connection: str) -> Feast:
    """`applied`, a store of this test's own, over that Redis instead of SQLite."""
    text = (Feast().repo / "redis.yaml").read_text().replace("${FEAST_REDIS}", connection)
    yaml = applied.repo / "redis.yaml"
    yaml.write_text(text.replace("${FEAST_REGISTRY}", str(applied.repo / "data" / "registry.db")))
    return Feast(repo=applied.repo, yaml=yaml)


def test_kafka_opens_with_user_password_and_authority(locked: Locked) -> None:
    producer = Producer(locked.kafka, "test")
    follower = Follower(locked.kafka, ItemRefresh.topic, start="latest")
    place = producer.send(ItemRefresh.topic, b"v", "k").result(30)
    consumer = Consumer(locked.kafka, "security", [ItemRefresh.topic])
    try:
        end = time.monotonic() + 60
        found: list[tuple[int, int]] = []
        while place not in found:
            assert time.monotonic() < end
            found += [(message.partition, message.offset) for message in consumer.poll(10, 0.2)]
        consumer.commit({(ItemRefresh.topic, place[0]): place[1] + 1})
        assert [message.value for message in follower.poll(10, 30)] == [b"v"]
    finally:
        consumer.close()
        follower.close()
        producer.close()


@pytest.mark.parametrize("wrong", ["password", "user", "authority", "no SASL", "plain text"])
def test_kafka_stays_shut_for_others(locked: Locked, stranger: Path, wrong: str) -> None:
    change: dict[str, object] = {
        "password": {"sasl_password": SecretStr("wrong")},
        "user": {"sasl_username": "nobody"},
        "authority": {"ssl_ca_location": stranger},
        "no SASL": {"security_protocol": "SSL"},
        "plain text": {"security_protocol": "PLAINTEXT"},
    }[wrong]  # type: ignore[assignment]
    with pytest.raises(MessagingFault) as caught:
        wait_for_broker(locked.kafka.model_copy(update=change), 2)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_s3_opens_with_keys_and_authority(locked: Locked) -> None:
    store = ObjectStore(locked.s3)
    assert store.put_new("k", b"1", "text/plain")
    etag = store.put_if("record", b"{}", None)
    assert store.put_if("record", b"[]", etag) != etag
    stored = store.get("record")
    assert stored is not None
    assert stored.data == b"[]"


@pytest.mark.parametrize("wrong", ["secret", "user", "authority", "no authority"])
def test_s3_stays_shut_for_others(locked: Locked, stranger: Path, wrong: str) -> None:
    change: dict[str, object] = {
        "secret": {"secret_key": SecretStr("wrong-wrong")},
        "user": {"access_key": SecretStr("nobody")},
        "authority": {"ca_bundle": stranger},
        "no authority": {"ca_bundle": None},
    }[wrong]  # type: ignore[assignment]
    store = ObjectStore(locked.s3.model_copy(update=change), timeout=2, attempts=1)
    assert not store.ping()
    with pytest.raises(StorageFault) as caught:
        store.put_if("record", b"{}", None)
    assert "\n" not in str(caught.value)
    assert SECRET_KEY not in str(caught.value)


def test_a_presigned_address_opens_one_object_and_not_for_ever(locked: Locked) -> None:
    store = ObjectStore(locked.s3)
    store.put_new("shown", b"picture", "image/webp")
    with httpx.Client(verify=ssl.create_default_context(cafile=locked.authority.certificate)) as client:
        address = store.presign("shown", 1)
        assert client.get(store.presign("shown", 60)).content == b"picture"
        assert client.get(address.replace("/shown", "/record")).status_code == 403
        assert client.put(store.presign("shown", 60), content=b"other").status_code == 403
        end = time.monotonic() + 60
        while client.get(address).status_code == 200:
            assert time.monotonic() < end, "it never ends"
            time.sleep(0.2)
        assert client.get(address).status_code == 403


def test_redis_opens_with_password_and_authority(locked: Locked, feast_repo: Feast) -> None:
    features = Features(feast(feast_repo, locked.redis))
    row = {"user_id": "u", "segment_id": "s", "parent": "", "segments": ""}
    features.push("user_segment", [row])
    assert features.read(["user_segment:segment_id"], [{"user_id": "u"}]) == [{"user_id": "u", "segment_id": "s"}]
    features.close()


@pytest.mark.parametrize("wrong", ["password", "authority", "plain text"])
def test_redis_stays_shut_for_others(locked: Locked, feast_repo: Feast, stranger: Path, wrong: str) -> None:
    connection = {
        "password": locked.redis.replace(REDIS_PASSWORD, "wrong"),
        "authority": locked.redis.replace(str(locked.authority.certificate), str(stranger)),
        "plain text": f"{locked.redis.split(',')[0]},password={REDIS_PASSWORD}",
    }[wrong]
    features = Features(feast(feast_repo, connection), tries=1)
    assert not features.ping()
    with pytest.raises(FeatureFault) as caught:
        features.push("user_segment", [{"user_id": "u", "segment_id": "s"}])
    assert REDIS_PASSWORD not in str(caught.value)
    features.close()


def test_the_services_work_behind_locks_and_their_logs_hold_no_secret(
    locked: Locked, feast_repo: Feast, tiny_model: Path, zygote: Zygote, light_zygote: Zygote, tmp_path: Path
) -> None:
    world = World(tmp_path, locked.kafka, locked.s3, feast(feast_repo, locked.redis), tiny_model, SMALL)
    world.release(("a",))
    # Everything that they could say, and the secrets of everything in their settings.
    variables = world.environment() | {"ICG_LOG_LEVEL": "DEBUG", "ICG_AUDIT_BATCH_SECONDS": "0.2"}
    variables |= environment(kafka=locked.kafka, s3=locked.s3)
    log = tmp_path / "audit.log"
    with (
        zygote.start("covers", [], variables, tmp_path / "covers.log").running() as covers,
        light_zygote.start("audit", [], variables, log).running() as audit,
    ):
        world.store.put_new("art/1.png", picture(1), "image/png")
        sources = [
            world.send(publish("locked", reference_image=world.store.address("art/1.png"))),
            world.send(publish("other")),
        ]
        refresh = world.send(ItemRefresh(item_id="other", segments=("a",)))
        world.wait([*sources, refresh], 120, covers.check)
        assert [world.ready[source][0].outcome for source in sources] == [Outcome.DRAWN] * 2
        end = time.monotonic() + 120
        while not any("cover-ready" in key for key in world.store.list("audit/")):
            assert time.monotonic() < end, log.read_text()[-2000:]
            audit.check()
            time.sleep(0.2)
        assert covers.terminate() == 0
        assert audit.terminate() == 0
    rows = world.features.read(["item_covers:state"], [{"item_id": "locked"}])
    assert rows[0]["state"] == "ready"
    for said in (covers.log.read_text(), log.read_text()):
        assert "ready again" in said  # it did log
        for secret in (PASSWORD, SECRET_KEY, REDIS_PASSWORD):
            assert secret not in said
    world.close()
