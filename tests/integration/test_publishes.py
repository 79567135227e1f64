"""The Faust app and its group."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError

from workers.covers.publishes import Publishes
from workers.exceptions import MessagingFault
from workers.messaging import Message
from workers.settings import Kafka


class Sink:
    """A lane that takes everything and acks nothing."""

    async def take(self, message: Message, token: object) -> None:
        pass

    def drop(self, partitions: Iterable[tuple[str, int]]) -> None:
        pass


def member(kafka: Kafka, folder: Path) -> Publishes:
    sink: Any = Sink()
    return Publishes(kafka, sink, 4, folder, lose_nothing=False)


async def until_assigned(publishes: Publishes) -> None:
    async with asyncio.timeout(60):
        while not publishes.assigned:
            assert publishes.crashed is None
            await asyncio.sleep(0.05)


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


def test_who_may_not_join_ends_with_a_reason(own_kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(self: Any, request: Any) -> Any:
        raise GroupAuthorizationFailedError("icg-covers")

    monkeypatch.setattr(CoordinatorGroupRebalance, "_send_sync_group_request", refused)

    async def scenario() -> BaseException | None:
        publishes = member(own_kafka, tmp_path)
        starting = asyncio.create_task(publishes.start())
        try:
            async with asyncio.timeout(60):
                while publishes.crashed is None:
                    await asyncio.sleep(0.05)
        finally:
            starting.cancel()
            await asyncio.wait_for(publishes.stop(), 20)
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
