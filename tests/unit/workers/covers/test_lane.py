"""Which messages a lane begins, and which it acks, while partitions come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from workers.covers.acks import Partition, Ticket
from workers.covers.lane import Lane
from workers.events import ItemPublish, ItemRefresh, Outcome
from workers.messaging import Message

ONE, OTHER = ("item-publish", 0), ("item-publish", 1)


class Hands:
    """In place of the worker: each message is handled when it is told so."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self._may_end: dict[int, asyncio.Event] = {}

    async def handle(self, message: Message, kind: type[ItemPublish] | type[ItemRefresh]) -> Outcome:
        self.begun.append(message.offset)
        self._may_end[message.offset] = asyncio.Event()
        await self._may_end[message.offset].wait()
        return Outcome.DRAWN

    async def hand_over(self, partitions: Sequence[Partition]) -> None:
        pass

    async def end(self, offset: int) -> None:
        self._may_end[offset].set()
        await asyncio.sleep(0.01)


def message(partition: Partition, offset: int) -> Message:
    return Message(*partition, offset, None, b"{}")


def test_what_waited_for_room_while_its_partition_went_is_not_begun() -> None:
    async def scene() -> None:
        hands, acked = Hands(), list[int]()

        def ack(ticket: Ticket[Any]) -> None:
            acked.append(ticket.offset)

        lane: Lane[Any] = Lane(hands, ItemPublish, 2, ack)  # type: ignore[arg-type]
        await lane.take(message(ONE, 8), None)
        await lane.take(message(OTHER, 3), None)
        held = asyncio.create_task(lane.take(message(ONE, 9), None))
        await asyncio.sleep(0.01)
        await lane.drop([ONE])
        await hands.end(8)
        await held
        assert (hands.begun, acked) == ([8, 3], [])  # 8 is its next owner's to ack
        # It comes back: both are delivered again, and acked in their order.
        await lane.take(message(ONE, 8), None)
        assert lane.full
        await hands.end(3)
        await lane.take(message(ONE, 9), None)
        await asyncio.sleep(0.01)
        assert hands.begun == [8, 3, 8, 9]
        await hands.end(9)
        assert acked == [3]
        await hands.end(8)
        assert acked == [3, 8, 9]

    asyncio.run(scene())
