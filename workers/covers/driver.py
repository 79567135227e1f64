"""Faust's Kafka driver, mended where it loses messages, hides errors or tells too little.

Each override says what of Faust 0.15.3 or aiokafka 0.14 it is there for. Tests: `tests/integration/test_publishes.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from aiokafka.errors import KafkaError, NoOffsetForPartitionError
from faust.assignor import PartitionAssignor
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP

from workers.covers.acks import Partition
from workers.covers.arrivals import Arrivals
from workers.exceptions import MessagingFault

log = logging.getLogger(__name__)


class LateLeader(PartitionAssignor):  # type: ignore[misc]
    """For the mock cluster, which refuses whoever syncs after the leader.

    The leader has its answer first and is ready in a millisecond, so on a busy machine the others were late again and
    again, and every time costs all of them five seconds.
    """

    SECONDS = 0.5

    def assign(self, cluster: Any, member_metadata: Any) -> Any:
        if len(member_metadata) > 1:
            time.sleep(self.SECONDS)  # on the consumer's own thread
        return super().assign(cluster, member_metadata)


class _Thread(AIOKafkaConsumerThread):  # type: ignore[misc]
    _joining: asyncio.Task[None] | None = None

    async def on_start(self) -> None:
        await super().on_start()
        self._joining = asyncio.get_running_loop().create_task(self._join_again())

    async def on_thread_stop(self) -> None:
        if self._joining is not None:  # None where the broker was never reached
            self._joining.cancel()
        await super().on_thread_stop()

    async def _join_again(self) -> None:
        """See to it that an answer of the coordinator that aiokafka does not expect is no end.

        It keeps such an error, and stays out of the group, until it is asked for records by a method that Faust does
        not use. Once the error is taken it joins again. The mock cluster answers so to a member that is slow to sync.
        """
        coordinator = self._consumer._coordinator
        while True:
            await asyncio.sleep(0.5)
            try:
                coordinator.check_errors()
            except KafkaError as error:
                if not _unexpected(error) or coordinator._coordination_task.done():
                    await self.crash(MessagingFault(f"{self.app.conf.id}: {error}"))
                    return
                log.warning("%s: joins again after %s", self.app.conf.id, error)

    async def _fetch_records(
        self, consumer: Any, active_partitions: Any, timeout: float | None = None, max_records: int | None = None
    ) -> Any:
        """As Faust's, which waits inside: then nobody could tell from where to where the log was read."""
        until = time.monotonic() + (timeout or 0.0)
        while True:
            begun = _positions(consumer)
            try:
                found = await super()._fetch_records(consumer, active_partitions, 0, max_records)
            except NoOffsetForPartitionError:
                # Of a partition that was just added: `_Consumer.seek_to_committed` is about to say where it begins.
                return {}
            self._note_holes(begun, found, _positions(consumer))
            left = until - time.monotonic()
            if found or left <= 0 or not self.consumer.flow_active:
                return found
            waiter = consumer._fetcher._create_fetch_waiter()
            await asyncio.wait([waiter], timeout=left)
            if not waiter.done():
                waiter.cancel()
                return {}
            try:
                waiter.result()
            except KafkaError as error:
                if not _unexpected(error):
                    raise
                return {}  # the coordinator keeps it, for `_join_again`

    def _note_holes(self, begun: Mapping[TP, int], found: Mapping[TP, Any], ended: Mapping[TP, int]) -> None:
        for tp, start in begun.items():
            for offset in [*(record.offset for record in found.get(tp, ())), ended.get(tp, start)]:
                if offset > start:
                    self.consumer._arrivals.nothing(partition_of(tp), start, offset)
                start = offset + 1

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust asks the broker to hold an empty fetch for 1.5 s; the mock cluster holds it so long even if data comes.
        consumer._fetch_max_wait_ms = 100
        # What a platform publishes in a transaction that it aborts is not published.
        consumer._isolation_level = "read_committed"
        return consumer

    def highwater(self, tp: TP) -> int | None:
        """Up to where messages can come: not those of a transaction that is still open."""
        end: int | None = self._ensure_consumer().last_stable_offset(tp)
        return end


def _unexpected(error: KafkaError) -> bool:
    """Whether it is an answer of the coordinator that aiokafka does not know, or one that may be another next time."""
    return type(error) is KafkaError or bool(error.retriable)


def _positions(consumer: Any) -> dict[TP, int]:
    """From where each partition will be read next; of none while the group settles, when that can change any moment."""
    subscriptions = consumer._subscription
    if subscriptions.reassignment_in_progress:
        return {}
    assignment = subscriptions.subscription.assignment
    states = {tp: assignment.state_value(tp) for tp in assignment.tps}
    return {tp: state.position for tp, state in states.items() if state.has_valid_position}


class _Unread(dict[TP, int | None]):
    """Where Faust writes which offset it has read last, to drop what is below; kept empty."""

    def __missing__(self, _: TP) -> None:
        return None

    def __setitem__(self, _: TP, __: int | None) -> None:
        pass

    def update(self, *_: Any, **__: Any) -> None:
        pass


class _Consumer(Consumer):  # type: ignore[misc]
    def __init__(self, transport: ArrivalsTransport, *args: Any, **kwargs: Any) -> None:
        super().__init__(transport, *args, **kwargs)
        self._arrivals = transport.arrivals
        self._read_offset = _Unread()

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """To the beginning where nothing is committed: in a partition that is new, or whose first message is not done.

        aiokafka goes back to no offset 0, and what Faust has thrown away of such a partition would not come again.
        """
        offsets: dict[TP, int] = dict(await super().seek_to_committed())
        new = [tp for tp, offset in offsets.items() if offset is None or offset < 0]
        beginning = await self.earliest_offsets(*new) if new else {}
        # An offset 0 that is no longer there is an error as any other: not the earliest.
        if first := {tp: 0 for tp, offset in offsets.items() if offset == 0} | dict(beginning):
            await self.seek_wait(first)
        offsets |= beginning
        for tp, offset in offsets.items():
            self._arrivals.begin(partition_of(tp), offset)
        return offsets

    async def perform_seek(self) -> None:
        """Sooner than Faust loses patience, who would then never let anything flow again, and not say so."""
        try:
            async with asyncio.timeout(0.8 * self.app.conf.broker_request_timeout):
                await super().perform_seek()
        except TimeoutError:
            raise MessagingFault(f"{self.app.conf.id}: the broker does not say where to go on") from None

    def ack(self, message: Any) -> bool:
        """Only what the agent was given: without its C extension Faust acks what it throws away."""
        return bool(message.tracked and super().ack(message))

    def _new_offset(self, tp: TP) -> int | None:
        """The lane acks in order and `Arrivals` leaves nothing out: all before the last ack is finished."""
        acked, self._acked[tp] = self._acked[tp], []
        self._acked_index[tp].clear()
        return self._arrivals.after(partition_of(tp), max(acked)) if acked else None


class ArrivalsTransport(Transport):  # type: ignore[misc]
    Consumer = _Consumer

    def __init__(self, arrivals: Arrivals, *args: Any) -> None:
        super().__init__(*args)
        self.arrivals = arrivals


def partition_of(tp: TP) -> Partition:
    return tp.topic, tp.partition
