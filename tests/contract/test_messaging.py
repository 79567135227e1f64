"""What every broker must do for us."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.waiting import until
from workers import tracing
from workers.events import DEAD_LETTERS, ItemPublish, ItemRefresh, ModelUpdate, UserBehavior
from workers.exceptions import MessageTooLarge, MessagingFault, OffsetLost
from workers.messaging import Consumer, Follower, Message, Producer, wait_for_broker
from workers.settings import Kafka
from workers.topics import TOPICS, ensure_topics

pytestmark = pytest.mark.real("kafka")
TOPIC = ItemRefresh.topic


@pytest.fixture
def producer(broker: Kafka) -> Iterator[Producer]:
    producer = Producer(broker, "test")
    yield producer
    producer.close()


def drain(consumer: Consumer | Follower, wanted: int, seconds: float = 90) -> list[Message]:
    found: list[Message] = []
    end = time.monotonic() + seconds
    while len(found) < wanted:
        assert time.monotonic() < end, f"{len(found)} of {wanted} messages came"
        found += consumer.poll(1000, 0.2)
    return found


def assigned(broker: Kafka, group: str, **options: object) -> Consumer:
    """A consumer of TOPIC that has its partitions."""
    consumer = Consumer(broker, group, [TOPIC], **options)  # type: ignore[arg-type]
    until(lambda: bool(consumer.poll(1, 0.1) or consumer.assignment()))
    return consumer


def ends(broker: Kafka) -> dict[tuple[str, int], int]:
    """Where each partition of TOPIC ends now."""
    follower = Follower(broker, TOPIC, start="latest")
    try:
        return {(TOPIC, number): at for number, at in follower._next.items()}
    finally:
        follower.close()


def at_end(broker: Kafka, group: str) -> Consumer:
    """A consumer that begins after whatever other tests left in TOPIC."""
    return assigned(broker, group, start="latest")


def test_keys_values_and_headers_arrive_as_they_were_sent(broker: Kafka, producer: Producer) -> None:
    follower = Follower(broker, TOPIC, start="latest")
    sent = [
        (b"k", b"v", {"a": b"1", "b": b"\x00\xff"}),
        (None, b"no key", {}),
        (b"no value", None, {"why": b""}),
        ("grüße".encode(), "☃".encode(), {}),
    ]
    places = [producer.send(TOPIC, value, key, headers).result(60) for key, value, headers in sent]
    found = {(m.partition, m.offset): m for m in drain(follower, len(sent))}
    follower.close()
    for (key, value, headers), place in zip(sent, places, strict=True):
        message = found[place]
        assert (message.key, message.value, message.headers) == (key, value, headers)
        assert abs(message.timestamp_ms / 1000 - time.time()) < 300


def test_one_key_keeps_its_order_on_one_partition(broker: Kafka, producer: Producer) -> None:
    follower = Follower(broker, TOPIC, start="latest")
    key = uuid.uuid4().hex
    for number in range(200):
        producer.send(TOPIC, str(number).encode(), key)
    found = drain(follower, 200)
    follower.close()
    assert [int(m.value or b"") for m in found] == list(range(200))
    assert len({m.partition for m in found}) == 1


def test_a_partition_can_be_chosen(broker: Kafka, producer: Producer) -> None:
    assert [producer.send(TOPIC, b"x", "same", partition=number).result(60)[0] for number in (0, 1)] == [0, 1]


def test_an_event_carries_cloudevents_headers_and_its_key(broker: Kafka, producer: Producer) -> None:
    follower = Follower(broker, ItemPublish.topic, start="latest")
    event = ItemPublish(item_id="lantern", item_version=3, title="The Lantern at Night")
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    with tracing.processing("another", 0, 0, {"traceparent": parent.encode(), "tracestate": b"vendor=1"}):
        producer.send_event(event, "id-1").result(60)
    (message,) = drain(follower, 1)
    follower.close()
    assert ItemPublish.decode(message.value) == event
    assert message.key == b"lantern"
    assert message.headers["ce_id"] == b"id-1"
    assert message.headers["ce_source"] == b"/icg/test"
    assert message.headers["ce_type"] == b"icg.item-publish.v1"
    # Without an SDK there are no spans of ours: the platform's goes on as it came.
    assert message.headers["traceparent"] == parent.encode()
    assert message.headers["tracestate"] == b"vendor=1"
    assert message.source().event_id == "id-1"


def test_an_events_own_id_is_its_cloudevents_id(broker: Kafka, producer: Producer) -> None:
    follower = Follower(broker, UserBehavior.topic, start="latest")
    producer.send_event(UserBehavior(event_id="e-7", user_id="u", item_id="i", kind="click")).result(60)
    (message,) = drain(follower, 1)
    follower.close()
    assert message.headers["ce_id"] == b"e-7"


def test_a_dead_letter_keeps_the_original_and_says_why(broker: Kafka, producer: Producer) -> None:
    follower = Follower(broker, DEAD_LETTERS, start="latest")
    bad = Message("item-publish", 2, 41, b"key", b"\xffnot json", {"ce_id": b"x"}, 0)
    producer.dead_letter(bad, "the value is not JSON", attempt=2).result(60)
    producer.dead_letter(Message("item-publish", 0, 0, None, None), "no value").result(60)
    letters = {m.headers["dlq_offset"]: m for m in drain(follower, 2)}
    follower.close()
    letter = letters[b"41"]
    assert (letter.key, letter.value) == (b"key", b"\xffnot json")
    assert letter.headers["ce_id"] == b"x"
    assert letter.headers["dlq_reason"] == b"the value is not JSON"
    assert letter.headers["dlq_topic"] == b"item-publish"
    assert letter.headers["dlq_partition"] == b"2"
    assert letter.headers["dlq_attempt"] == b"2"
    assert letters[b"0"].value is None


@pytest.mark.parametrize("headers", [{}, {"huge": b"h" * 990_000}], ids=["value", "headers"])
def test_a_dead_letter_of_the_largest_message_is_cut_and_says_so(
    broker: Kafka, producer: Producer, headers: dict[str, bytes]
) -> None:
    follower = Follower(broker, DEAD_LETTERS, start="latest")
    producer.dead_letter(Message("item-publish", 0, 7, b"k", b"x" * 1_040_000, headers), "too much").result(60)
    (letter,) = drain(follower, 1)
    follower.close()
    assert letter.headers["dlq_truncated"] == b"1040000"
    assert len(letter.value or b"") > 500_000
    assert ("dlq_headers_dropped" in letter.headers) == bool(headers)


def test_a_message_that_is_too_large_is_a_clear_error(producer: Producer) -> None:
    with pytest.raises(MessageTooLarge, match=r"5,000,000 bytes"):
        producer.send(TOPIC, b"x" * 5_000_000).result(60)


def test_a_group_resumes_where_it_committed(broker: Kafka, producer: Producer) -> None:
    group = f"resume-{uuid.uuid4().hex}"
    first = at_end(broker, group)
    for number in range(10):
        producer.send(TOPIC, str(number).encode(), "k").result(60)
    found = drain(first, 10)
    first.commit({(TOPIC, found[3].partition): found[3].offset + 1})
    assert first.committed()[TOPIC, found[3].partition] == found[4].offset
    first.close()

    second = assigned(broker, group)
    try:
        again = drain(second, 6)
        assert [m.value for m in again] == [b"4", b"5", b"6", b"7", b"8", b"9"]
    finally:
        second.close()


def test_a_group_that_never_committed_begins_at_the_beginning(broker: Kafka, producer: Producer) -> None:
    place = producer.send(TOPIC, b"before the group").result(60)
    consumer = assigned(broker, f"fresh-{uuid.uuid4().hex}")
    try:
        seen = 0
        end = time.monotonic() + 90
        while time.monotonic() < end:
            found = consumer.poll(1000, 0.2)
            seen += len(found)
            if place in {(m.partition, m.offset) for m in found}:
                break
        assert seen >= 1
        assert time.monotonic() < end
    finally:
        consumer.close()


def test_latest_is_pinned_at_the_first_assignment(broker: Kafka, producer: Producer) -> None:
    """Else a restart before the first commit would skip what came in between."""
    group = f"latest-{uuid.uuid4().hex}"
    at_end(broker, group).close()
    place = producer.send(TOPIC, b"in between").result(60)
    second = at_end(broker, group)
    try:
        (message,) = drain(second, 1)
        assert (message.partition, message.offset) == place
    finally:
        second.close()


def test_an_offset_that_the_broker_no_longer_has_is_an_error(broker: Kafka, producer: Producer) -> None:
    group = f"lost-{uuid.uuid4().hex}"
    first = at_end(broker, group)
    beyond = {place: at + 1_000 for place, at in ends(broker).items()}
    first.commit(beyond)
    first.close()

    second = assigned(broker, group)
    try:
        with pytest.raises(OffsetLost, match=rf"{TOPIC}\[\d\].*{group}"):
            drain(second, 1)
        with pytest.raises(OffsetLost):
            second.poll(10, 0.2)
    finally:
        second.close()


def test_an_offset_that_only_seems_gone_is_read_on_at(broker: Kafka, producer: Producer) -> None:
    consumer = at_end(broker, f"seems-{uuid.uuid4().hex}")
    try:
        partition, offset = producer.send(TOPIC, b"1", "k").result(60)
        drain(consumer, 1)
        assert not consumer._go_on(TOPIC, partition, offset + 100)  # beyond the end: gone indeed
        assert not consumer._go_on(TOPIC, partition, None)
        assert consumer._go_on(TOPIC, partition, offset + 1)
        producer.send(TOPIC, b"2", "k").result(60)
        assert [m.offset for m in drain(consumer, 1)] == [offset + 1]
    finally:
        consumer.close()


def test_commit_seek_pause_and_lag(broker: Kafka, producer: Producer) -> None:
    consumer = at_end(broker, f"seek-{uuid.uuid4().hex}")
    try:
        places = [producer.send(TOPIC, str(number).encode(), "k").result(60) for number in range(5)]
        partition, first = places[0]
        until(lambda: consumer.lag()[TOPIC, partition] == 5)
        assert sum(consumer.lag().values()) == 5
        assert len(drain(consumer, 5)) == 5
        assert sum(consumer.lag().values()) == 0

        consumer.seek(TOPIC, partition, first + 3)
        assert [m.offset for m in drain(consumer, 2)] == [first + 3, first + 4]

        consumer.pause()
        producer.send(TOPIC, b"later", "k").result(60)
        assert consumer.poll(10, 0.5) == []
        consumer.resume()
        assert [m.value for m in drain(consumer, 1)] == [b"later"]
    finally:
        consumer.close()


def test_two_members_share_the_partitions_and_hear_of_it(broker: Kafka) -> None:
    group = f"share-{uuid.uuid4().hex}"
    given: list[set[tuple[str, int]]] = []
    taken: list[set[tuple[str, int]]] = []
    first = assigned(broker, group, on_assign=given.append, on_revoke=taken.append, start="latest")
    everything = first.assignment()
    second = Consumer(broker, group, [TOPIC], start="latest")
    try:

        def shared() -> bool:
            first.poll(1, 0.05)
            second.poll(1, 0.05)
            return bool(second.assignment() and first.assignment() and first.assignment() != everything)

        until(shared)
        assert first.assignment() | second.assignment() == everything
        assert not first.assignment() & second.assignment()
        assert (given[0], given[-1]) == (everything, first.assignment())
        assert taken[0] == everything
    finally:
        second.close()
        first.close()


def test_what_was_read_of_a_partition_is_gone_with_it(broker: Kafka, producer: Producer) -> None:
    """A record that came just before its partition went is its next owner's, with those before it."""
    quick = broker.model_copy(update={"heartbeat_seconds": 0.5})
    group, stop = f"gone-{uuid.uuid4().hex}", threading.Event()
    first = at_end(quick, group)
    everything = first.assignment()
    place = producer.send(TOPIC, b"just before", "k").result(60)

    def join() -> None:
        second = Consumer(quick, group, [TOPIC])
        while not stop.is_set():
            second.poll(1, 0.1)
        second.close()

    joining = threading.Thread(target=join)
    try:
        until(lambda: first.lag()[TOPIC, place[0]] == 1)
        joining.start()
        found: list[Message] = []
        end = time.monotonic() + 90
        while first.assignment() == everything:
            assert time.monotonic() < end
            found = first.poll(100, 1.0, linger=6.0)  # the rebalance comes while it waits for a second record
        assert found == []
    finally:
        stop.set()
        if joining.ident:
            joining.join()
        first.close()


def test_what_is_taken_away_may_still_be_committed(broker: Kafka, producer: Producer) -> None:
    group = f"revoke-{uuid.uuid4().hex}"
    done: dict[tuple[str, int], int] = {}
    first = assigned(broker, group, start="latest", on_revoke=lambda _: first.commit(done))
    place = producer.send(TOPIC, b"done before the revocation", "k").result(60)
    (message,) = drain(first, 1)
    done[TOPIC, message.partition] = message.offset + 1
    first.close()
    second = assigned(broker, group)
    try:
        assert second.committed()[TOPIC, place[0]] == place[1] + 1
    finally:
        second.close()


def test_a_place_that_is_not_ours_is_a_fault(broker: Kafka) -> None:
    consumer = Consumer(broker, f"stranger-{uuid.uuid4().hex}", [TOPIC])
    try:
        with pytest.raises(MessagingFault):
            consumer.seek(TOPIC, 0, 0)
    finally:
        consumer.close()


def test_every_follower_sees_everything_and_knows_when_it_has(broker: Kafka, producer: Producer) -> None:
    for number in range(20):
        producer.send(ModelUpdate.topic, str(number).encode(), str(number)).result(60)
    followers = [Follower(broker, ModelUpdate.topic) for _ in range(2)]
    try:
        for follower in followers:
            assert not follower.caught_up()
            seen = []
            while not follower.caught_up():
                seen += follower.poll(7, 0.2)
            assert {str(number).encode() for number in range(20)} <= {m.value for m in seen}
            assert len({(m.partition, m.offset) for m in seen}) == len(seen)
    finally:
        for follower in followers:
            follower.close()


def test_a_follower_from_the_end_misses_nothing_after_it_is_made(broker: Kafka, producer: Producer) -> None:
    follower = Follower(broker, TOPIC, start="latest")
    assert follower.caught_up()
    place = producer.send(TOPIC, b"now").result(60)
    assert not follower.caught_up()
    (message,) = drain(follower, 1)
    assert (message.partition, message.offset) == place
    assert follower.caught_up()
    follower.close()


def test_all_topics_are_there_and_may_be_made_again(broker: Kafka, producer: Producer) -> None:
    ensure_topics(broker)
    for topic in TOPICS:
        assert producer.send(topic, b"{}").result(60)[0] >= 0


def test_ping_and_waiting_for_the_broker(broker: Kafka, producer: Producer) -> None:
    wait_for_broker(broker, 60)
    assert producer.ping(60)


def test_a_broker_that_is_not_there_is_a_fault_in_one_line() -> None:
    nobody = Kafka(bootstrap_servers="127.0.0.1:9")
    with pytest.raises(MessagingFault, match=r"no broker at 127\.0\.0\.1:9 within 0\.5 s") as caught:
        wait_for_broker(nobody, 0.5)
    assert "\n" not in str(caught.value)
    producer = Producer(nobody, "test")
    waiting = producer.send(TOPIC, b"x")
    assert not producer.ping(0.3)
    producer.close(timeout=0.3)
    with pytest.raises(MessagingFault):
        waiting.result(60)
    with pytest.raises(MessagingFault, match="closed"):
        producer.send(TOPIC, b"x")
