"""`icg dlq`: what was refused is listed, and goes back to its topic as it was."""

from __future__ import annotations

import json

import pytest

from tests.zygote import Icg, Zygote
from workers.deadletters import MOST_ATTEMPTS, Filter, letters, send_again
from workers.events import ItemPublish
from workers.messaging import Follower, Message, Producer
from workers.settings import Kafka, Settings, environment

VALUE = '{"item_id": "a", "title": "Füchse\\u0000"}'.encode()
HEADERS = {"ce_id": b"from-the-platform", "ce_source": b"/cms", "traceparent": b"00-4bf9-00f0-01", "odd": b"\xff\x00"}


@pytest.fixture
def settings(own_kafka: Kafka) -> Settings:
    return Settings(kafka=own_kafka)


def refuse(settings: Settings, *refused: tuple[Message, str], attempt: int = 1) -> None:
    producer = Producer(settings.kafka, "covers")
    for message, reason in refused:
        producer.dead_letter(message, reason, attempt).result(60)
    producer.close()


def message(offset: int, key: bytes = b"a", topic: str = ItemPublish.topic, **headers: bytes) -> Message:
    return Message(topic, 2, offset, key, VALUE, HEADERS | headers, 1_795_221_985_073)


def read(settings: Settings, topic: str) -> list[Message]:
    follower = Follower(settings.kafka, topic)
    found: list[Message] = []
    while not follower.caught_up():
        found += follower.poll(100, 0.2)
    follower.close()
    return found


def test_a_letter_goes_back_as_it_was(settings: Settings) -> None:
    refuse(settings, (message(7), "title: too long"))
    assert send_again(settings, Filter()) == (1, {})
    (back,) = read(settings, ItemPublish.topic)
    assert (back.key, back.value) == (b"a", VALUE)
    assert {name: back.headers[name] for name in HEADERS} == HEADERS
    assert back.headers["dlq_attempt"] == b"2"
    assert "dlq_reason" not in back.headers


def test_refused_again_it_is_sent_once_and_not_for_ever(settings: Settings) -> None:
    refuse(settings, (message(7), "title: too long"), attempt=MOST_ATTEMPTS - 1)
    assert send_again(settings, Filter())[0] == 1
    (back,) = read(settings, ItemPublish.topic)
    assert back.headers["dlq_attempt"] == str(MOST_ATTEMPTS).encode()
    refuse(settings, (back, "title: still too long"), attempt=MOST_ATTEMPTS)

    sent, left = send_again(settings, Filter())
    assert sent == 0
    assert list(left.values()) == [1]  # one, though it is there twice
    assert f"failed {MOST_ATTEMPTS} times" in next(iter(left))
    last = max(letters(settings), key=lambda letter: letter.attempt)
    assert last.origin == "item-publish:2:7"
    assert send_again(settings, Filter(at=frozenset({last.at})))[0] == 1


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        (Filter(), {b"a", b"b", b"u"}),
        (Filter(topic="user-behavior"), {b"u"}),
        (Filter(reason="NOT AN image"), {b"b"}),
        (Filter(topic="item-publish", reason="kind"), set()),
    ],
)
def test_filters(settings: Settings, wanted: Filter, keys: set[bytes]) -> None:
    refuse(
        settings,
        (message(1), "title: too long"),
        (message(2, b"b"), "reference_image: not an image"),
        (message(3, b"u", "user-behavior"), "kind: unknown"),
        (message(4, b"x", "somebody-elses"), "who knows"),
        (message(5, b"h", h=b"x" * 1_000_000), "headers: too large"),
    )
    sent, left = send_again(settings, wanted)
    assert sent == len(keys)
    assert {each.key for topic in ("item-publish", "user-behavior") for each in read(settings, topic)} == keys
    if wanted == Filter():
        assert sorted(left) == ["their original topic is none of ours", "they were too large to be kept whole"]


@pytest.fixture
def icg(light_zygote: Zygote) -> Icg:
    return lambda settings, *arguments: light_zygote.run(["dlq", *arguments], environment(kafka=settings.kafka))


def test_the_commands(settings: Settings, icg: Icg) -> None:
    assert "no dead letters" in icg(settings, "list").stdout
    refuse(settings, (message(7), "title: [too] long"))
    table = icg(settings, "list")
    assert table.returncode == 0, table.stderr
    header, line = table.stdout.splitlines()  # where nobody watches, a line a letter
    assert dict(zip(header.split("\t"), line.split("\t"), strict=True))["reason"] == "title: [too] long"
    (record,) = json.loads(icg(settings, "list", "--format", "json").stdout)
    assert (record["topic"], record["offset"], record["attempt"]) == ("item-publish", 7, 1)
    assert record["reason"] == "title: [too] long"

    assert icg(settings, "replay", "--all", "--dry-run").stdout.strip() == "1 dead letter would be sent again"
    assert read(settings, ItemPublish.topic) == []
    chosen = icg(settings, "replay", "--offset", record["at"])
    assert chosen.stdout.strip() == "1 dead letter sent again"
    assert len(read(settings, ItemPublish.topic)) == 1


@pytest.mark.parametrize(
    ("arguments", "says"), [(("replay",), "say which"), (("replay", "--offset", "seven"), "no place of a dead letter")]
)
def test_wrong_use_is_told_in_a_line(arguments: tuple[str, ...], says: str, icg: Icg) -> None:
    done = icg(Settings(kafka=Kafka(bootstrap_servers="127.0.0.1:1")), *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
