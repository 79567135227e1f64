"""The Faust app and its group."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError, KafkaError
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from tests.servers import empty
from tests.waiting import until
from workers.covers import metrics
from workers.covers.groups import Group
from workers.covers.publishes import GROUP, Publishes
from workers.events import ItemPublish
from workers.exceptions import MessagingFault, OffsetLost
from workers.messaging import Message, Producer, client_config
from workers.settings import Kafka


class Sink:
    """A lane that takes everything and acks it at once."""

    full = False

    def __init__(self) -> None:
        self.taken: list[int] = []

    async def take(self, message: Message, event: Any) -> None:
        self.taken.append(message.offset)
        if event is not None:  # refreshes have none
            event.ack()

    async def drop(self, partitions: Iterable[tuple[str, int]]) -> None:
        pass


def member(kafka: Kafka, folder: Path, sink: Any = None) -> Publishes:
    return Publishes(kafka, sink or Sink(), 4, folder)


async def until_assigned(publishes: Publishes) -> None:
    async with asyncio.timeout(60):
        while not publishes.assigned:
            assert publishes.crashed is None
            await asyncio.sleep(0.05)


async def until_crashed(publishes: Publishes) -> None:
    """Start it and wait until it has given up."""
    starting = asyncio.create_task(publishes.start())
    try:
        async with asyncio.timeout(60):
            while publishes.crashed is None:
                await asyncio.sleep(0.05)
    finally:
        starting.cancel()
        await asyncio.wait_for(publishes.stop(), 20)


def test_who_is_slow_to_sync_joins_again(own_kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mock cluster refuses a member that syncs after its leader; aiokafka expects no such answer."""
    follow = CoordinatorGroupRebalance._on_join_follower
    slowed: list[object] = []

    async def slowly(self: Any) -> Any:
        if not slowed:
            slowed.append(self)
            await asyncio.sleep(2)
        return await follow(self)

    monkeypatch.setattr(CoordinatorGroupRebalance, "_on_join_follower", slowly)

    async def scenario() -> None:
        first, second = member(own_kafka, tmp_path / "a"), member(own_kafka, tmp_path / "b")
        await first.start()
        try:
            await until_assigned(first)
            starting = asyncio.create_task(second.start())
            await until_assigned(second)
            await starting
            assert slowed
        finally:
            await asyncio.gather(first.stop(), second.stop())

    asyncio.run(scenario())


@pytest.mark.real("kafka", only=True)
def test_who_is_refused_while_it_waits_for_records_joins_again(
    own_kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, refused = CoordinatorGroupRebalance._send_sync_group_request, [False]

    async def once(self: Any, request: Any) -> Any:
        if not refused[0]:
            refused[0] = True
            raise KafkaError("Unexpected error from the coordinator")
        return await sync(self, request)

    async def scenario() -> None:
        sink = Sink()
        publishes = member(own_kafka, tmp_path, sink)
        await publishes.start()
        try:
            with closing(Producer(own_kafka, "test")) as producer:
                producer.send(ItemPublish.topic, b"{}", "one").result(20)
                async with asyncio.timeout(60):
                    while len(sink.taken) < 1:
                        await asyncio.sleep(0.05)
                monkeypatch.setattr(CoordinatorGroupRebalance, "_send_sync_group_request", once)
                thread = publishes.app.consumer._thread
                thread.thread_loop.call_soon_threadsafe(thread._consumer._coordinator.request_rejoin)
                async with asyncio.timeout(60):
                    while not refused[0]:
                        await asyncio.sleep(0.05)
                    producer.send(ItemPublish.topic, b"{}", "one").result(20)
                    while 1 not in sink.taken:
                        assert publishes.crashed is None
                        await asyncio.sleep(0.05)
        finally:
            await asyncio.wait_for(publishes.stop(), 20)

    asyncio.run(scenario())


def test_who_may_not_join_ends_with_a_reason(own_kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(self: Any, request: Any) -> Any:
        raise GroupAuthorizationFailedError("icg-covers")

    monkeypatch.setattr(CoordinatorGroupRebalance, "_send_sync_group_request", refused)

    async def scenario() -> BaseException | None:
        publishes = member(own_kafka, tmp_path)
        await until_crashed(publishes)
        return publishes.crashed

    reason = asyncio.run(scenario())
    assert isinstance(reason, MessagingFault)
    assert "GroupAuthorizationFailed" in str(reason)


def test_a_broker_that_goes_as_the_consumer_starts_is_the_reason(
    own_kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[type[BaseException]] = []  # what threads ended with
    monkeypatch.setattr(threading, "excepthook", lambda hook: ended.append(hook.exc_type))

    async def away(self: Any) -> None:
        raise KafkaConnectionError("away")

    monkeypatch.setattr(AIOKafkaConsumer, "start", away)

    async def scenario() -> BaseException | None:
        publishes = member(own_kafka, tmp_path)
        starting = asyncio.create_task(publishes.start())
        await asyncio.wait([starting], timeout=10)
        starting.cancel()
        await asyncio.wait_for(publishes.stop(), 20)
        return publishes.crashed

    assert isinstance(asyncio.run(scenario()), KafkaConnectionError)
    assert set(ended) <= {KafkaConnectionError}


def hide(monkeypatch: pytest.MonkeyPatch, *offsets: int) -> None:
    """Do as Faust does where it throws away what it has fetched: these do not come, once each."""
    getmany, hidden = Consumer.getmany, set(offsets)

    async def some(self: Any, timeout: float) -> AsyncIterator[Any]:
        async for tp, message in getmany(self, timeout):
            if message.offset in hidden:
                hidden.discard(message.offset)
            else:
                yield tp, message

    monkeypatch.setattr(Consumer, "getmany", some)


async def taken_by(publishes: Publishes, sink: Sink, kafka: Kafka, count: int) -> tuple[list[int], int]:
    """What the sink has taken once it has so many messages of one partition, and the group's offset after it."""
    with closing(Producer(kafka, "test")) as producer:
        [(partition, _), *_] = [producer.send(ItemPublish.topic, b"{}", "one").result(20) for _ in range(count)]
    await publishes.start()
    try:
        async with asyncio.timeout(30):
            while len(set(sink.taken)) < count:
                await asyncio.sleep(0.1)
                await publishes.look()
    finally:
        await publishes.stop()
    with closing(Group(kafka, GROUP, ItemPublish.topic)) as group:
        [committed] = group._client.committed([TopicPartition(ItemPublish.topic, partition)], timeout=10)
    return sink.taken, committed.offset


@pytest.mark.parametrize("hidden", [(2,), (0,), (1, 2), (0, 2, 4), (5,), (4, 5)], ids=str)
def test_what_faust_throws_away_is_asked_for_again(
    own_kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: tuple[int, ...]
) -> None:
    hide(monkeypatch, *hidden)
    sink = Sink()
    taken, committed = asyncio.run(taken_by(member(own_kafka, tmp_path, sink), sink, own_kafka, 6))
    assert (taken, committed) == ([0, 1, 2, 3, 4, 5], 6)


def test_what_faust_takes_for_read_comes_all_the_same(
    own_kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It notes an offset as read while the seek back to the group's is under way, and drops all below."""
    sink = Sink()
    publishes = member(own_kafka, tmp_path, sink)
    seek = Consumer.perform_seek

    async def late(self: Any) -> None:
        await seek(self)
        for tp in self.assignment():
            self._read_offset[tp] = 3

    monkeypatch.setattr(Consumer, "perform_seek", late)
    taken, committed = asyncio.run(taken_by(publishes, sink, own_kafka, 6))
    assert (taken, committed) == ([0, 1, 2, 3, 4, 5], 6)


def _begun(group: Group) -> bool:
    with suppress(MessagingFault):  # the broker has just started
        return group.begin()
    return False


@pytest.mark.real("kafka", only=True)
def test_a_platform_may_publish_in_transactions(own_kafka: Kafka, tmp_path: Path) -> None:
    """What it aborts is not published, and markers, which have offsets as messages have, are not waited for."""
    sink = Sink()
    publishes = member(own_kafka, tmp_path, sink)
    client = confluent_kafka.Producer(client_config(own_kafka) | {"transactional.id": "platform"})
    client.init_transactions(60)
    asked = metrics.ASKED_AGAIN._value.get()

    async def scenario() -> None:
        def publish(messages: int, *, commit: bool = True) -> None:
            client.begin_transaction()
            for _ in range(messages):
                client.produce(ItemPublish.topic, b"{}" if commit else b"aborted", "one")
            client.flush(20)
            if commit:
                client.commit_transaction(20)
            else:
                client.abort_transaction(20)

        async def until_taken(*offsets: int) -> None:
            async with asyncio.timeout(30):
                while sink.taken != list(offsets):
                    assert publishes.crashed is None
                    await asyncio.sleep(0.05)

        publish(2)  # offsets 0 and 1, marker 2
        publish(1, commit=False)  # 3, marker 4
        publish(1)  # 5, marker 6
        await publishes.start()
        try:
            await until_taken(0, 1, 5)
            await asyncio.to_thread(publish, 1)  # while it waits: 7, marker 8
            await until_taken(0, 1, 5, 7)
            await asyncio.to_thread(publish, 2, commit=False)  # 9 and 10, marker 11
            for _ in range(4):
                await publishes.look()
                await asyncio.sleep(0.2)
            client.begin_transaction()
            client.produce(ItemPublish.topic, b"{}", "one")  # 12, open
            await asyncio.to_thread(client.flush, 20)
            for _ in range(4):
                await publishes.look()
                await asyncio.sleep(0.2)
            await asyncio.to_thread(client.commit_transaction, 20)
            await until_taken(0, 1, 5, 7, 12)
            await asyncio.to_thread(publish, 2, commit=False)  # the end of the partition
            with closing(Group(own_kafka, GROUP, ItemPublish.topic)) as group:
                async with asyncio.timeout(30):
                    while group.lag():
                        await asyncio.sleep(0.2)
                        await publishes.look()
        finally:
            await publishes.stop()

    with closing(client):
        asyncio.run(scenario())
    assert metrics.ASKED_AGAIN._value.get() == asked


@pytest.mark.real("kafka", only=True)
def test_partitions_that_are_added_are_read_from_their_beginning(own_kafka: Kafka, tmp_path: Path) -> None:
    """The group has no offset there, and joins with "an offset that is gone is an error"."""
    with closing(Group(own_kafka, GROUP, ItemPublish.topic)) as group:
        until(lambda: _begun(group), 60)
    sink: Any = Sink()
    publishes = Publishes(own_kafka, sink, 4, tmp_path)
    admin = AdminClient(client_config(own_kafka))

    async def scenario() -> None:
        await publishes.start()
        try:
            await until_assigned(publishes)
            admin.create_partitions([NewPartitions(ItemPublish.topic, 6)])[ItemPublish.topic].result(20)
            until(lambda: len(admin.list_topics(timeout=20).topics[ItemPublish.topic].partitions) == 6, 60)
            with closing(Producer(own_kafka, "test")) as producer:
                for number in range(24):
                    producer.send(ItemPublish.topic, b"{}", f"key {number}").result(20)
            thread = publishes.app.consumer._thread
            async with asyncio.timeout(60):
                while len(sink.taken) < 24:
                    assert publishes.crashed is None
                    # Not in five minutes, as otherwise.
                    await thread.call_thread(thread._consumer._client.force_metadata_update)
                    await asyncio.sleep(0.2)
        finally:
            await asyncio.wait_for(publishes.stop(), 20)

    try:
        asyncio.run(scenario())
    finally:
        empty(own_kafka)


@pytest.mark.real("kafka", only=True)
def test_a_first_message_that_is_gone_is_an_error(own_kafka: Kafka, tmp_path: Path) -> None:
    """The group has committed that it begins at offset 0, and the broker has deleted what was there."""
    with closing(Group(own_kafka, GROUP, ItemPublish.topic)) as group:
        until(lambda: _begun(group), 60)
    with closing(Producer(own_kafka, "test")) as producer:
        [(partition, _), *_] = [producer.send(ItemPublish.topic, b"{}", "one").result(20) for _ in range(4)]
    gone = TopicPartition(ItemPublish.topic, partition, 2)
    admin = AdminClient(client_config(own_kafka))
    admin.delete_records([gone])[gone].result(20)
    sink: Any = Sink()
    publishes = Publishes(own_kafka, sink, 4, tmp_path)

    async def scenario() -> None:
        await until_crashed(publishes)

    asyncio.run(scenario())
    assert isinstance(publishes.crashed, OffsetLost)
    assert sink.taken == []


def test_a_seek_that_takes_too_long_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust would give up in silence and let nothing flow any more."""

    async def never(self: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(Consumer, "perform_seek", never)

    async def scenario() -> None:
        publishes = member(Kafka(), tmp_path)
        publishes.app.conf.broker_request_timeout = 0.1
        with pytest.raises(MessagingFault, match="does not say where to go on"):
            await publishes.app.consumer.perform_seek()

    asyncio.run(scenario())


def test_only_what_the_agent_was_given_is_acked(tmp_path: Path) -> None:
    """Without its C extension Faust acks what it throws away, too."""

    async def scenario() -> list[bool]:
        consumer = member(Kafka(), tmp_path).app.consumer
        consumer.app.topics._acking_topics.add(ItemPublish.topic)
        acked = []
        for offset, tracked in ((8, True), (9, False)):
            tp = TP(ItemPublish.topic, 0)
            message = ConsumerMessage(*tp, offset, 0.0, 0, {}, None, b"{}", None, tp=tp)
            message.tracked = tracked
            acked.append(consumer.ack(message))
        assert consumer._new_offset(tp) == 9
        return acked

    assert asyncio.run(scenario()) == [True, False]
