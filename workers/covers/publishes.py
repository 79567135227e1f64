"""`item-publish` by Faust: one app, one agent, manual acks.

What Faust offers beyond that stays off, each for a reason found in its source: automatic acks (an exception would ack
its event), `concurrency` (commits past unfinished offsets), `take` (acks a failed batch), tables, the web server,
leader election and topic creation. What it knows of offsets is not relied on either, see `Arrivals`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faust
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP, EventT, StreamT

from workers.covers import metrics
from workers.covers.acks import Partition, Ticket
from workers.covers.arrivals import Arrival, Arrivals
from workers.covers.lane import Lane
from workers.events import ItemPublish
from workers.exceptions import MessagingFault, OffsetLost
from workers.messaging import Message
from workers.settings import Kafka

log = logging.getLogger(__name__)

GROUP = "icg-covers"
OVERDUE_SECONDS = 10.0
"""After which a message that is there and does not come, though there is room for it, is asked for again."""
_DAY = 24 * 3600.0


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
                unexpected = type(error) is KafkaError or error.retriable
                if not unexpected or coordinator._coordination_task.done():
                    await self.crash(MessagingFault(f"{GROUP}: {error}"))
                    return
                log.warning("%s: joins again after %s", GROUP, error)

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
            waiter.result()  # raises what the broker refused

    def _note_holes(self, begun: Mapping[TP, int], found: Mapping[TP, Any], ended: Mapping[TP, int]) -> None:
        for tp, start in begun.items():
            for offset in [*(record.offset for record in found.get(tp, ())), ended.get(tp, start)]:
                if offset > start:
                    self.consumer._arrivals.nothing(_partition(tp), start, offset)
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
    def __init__(self, transport: _Transport, *args: Any, **kwargs: Any) -> None:
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
            self._arrivals.begin(_partition(tp), offset)
        return offsets

    async def perform_seek(self) -> None:
        """Sooner than Faust loses patience, who would then never let anything flow again, and not say so."""
        try:
            async with asyncio.timeout(0.8 * self.app.conf.broker_request_timeout):
                await super().perform_seek()
        except TimeoutError:
            raise MessagingFault(f"{GROUP}: the broker does not say where to go on") from None

    def ack(self, message: Any) -> bool:
        """Only what the agent was given: without its C extension Faust acks what it throws away."""
        return bool(message.tracked and super().ack(message))

    def _new_offset(self, tp: TP) -> int | None:
        """The lane acks in order and `Arrivals` leaves nothing out: all before the last ack is finished."""
        acked, self._acked[tp] = self._acked[tp], []
        self._acked_index[tp].clear()
        return self._arrivals.after(_partition(tp), max(acked)) if acked else None


class _Transport(Transport):  # type: ignore[misc]
    Consumer = _Consumer

    def __init__(self, arrivals: Arrivals, *args: Any) -> None:
        super().__init__(*args)
        self.arrivals = arrivals


def _partition(tp: TP) -> Partition:
    return tp.topic, tp.partition


def ssl_context(settings: Kafka) -> ssl.SSLContext | None:
    if settings.security_protocol not in {"SSL", "SASL_SSL"}:
        return None
    return ssl.create_default_context(cafile=str(settings.ssl_ca_location) if settings.ssl_ca_location else None)


def credentials(settings: Kafka) -> faust.auth.Credentials | None:
    context = ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=settings.sasl_username,
            password=settings.sasl_password.get_secret_value() if settings.sasl_password else None,
            mechanism=settings.sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context=context) if context else None


def message_of(event: EventT[Any]) -> Message:
    """Faust's event as one of ours. Of a header that is there twice the last value counts."""
    raw = event.message
    headers = raw.headers.items() if isinstance(raw.headers, dict) else raw.headers or ()
    return Message(
        raw.topic,
        raw.partition,
        raw.offset,
        raw.key,
        raw.value,
        {name: value or b"" for name, value in headers},
        int((raw.timestamp or 0) * 1000),
    )


def ack(ticket: Ticket[EventT[Any]]) -> None:
    ticket.value.ack()


class Publishes:
    """The Faust app and its one agent."""

    def __init__(
        self, settings: Kafka, lane: Lane[EventT[Any]], batch: int, datadir: Path, *, lose_nothing: bool
    ) -> None:
        """
        Args:
            batch: items of one batch; Faust buffers twice as many.
            lose_nothing: an offset that the broker no longer has is an error; only for a group that has committed.
        """
        datadir.mkdir(parents=True, exist_ok=True)  # Faust wants it even where it keeps nothing
        servers = ";".join(f"kafka://{server}" for server in settings.bootstrap_servers.split(","))
        self._lane = lane
        self._stopping = False
        self.assigned = False
        """Whether the group has given us our share of the partitions, be it none."""
        self.app = faust.App(
            GROUP,
            broker=servers,
            broker_credentials=credentials(settings),
            broker_session_timeout=settings.session_timeout_seconds,
            broker_heartbeat_interval=settings.heartbeat_seconds,
            broker_request_timeout=max(40.0, settings.session_timeout_seconds + 1),
            # A worker that waits for S3 for hours still owns its partitions; hanging is for the watchdog to judge.
            broker_max_poll_interval=_DAY,
            broker_max_poll_records=2 * batch,
            broker_commit_interval=0.5,
            broker_commit_livelock_soft_timeout=_DAY,
            stream_buffer_maxsize=2 * batch,
            stream_processing_timeout=_DAY,
            stream_wait_empty=False,
            stream_recovery_delay=0.0,
            consumer_auto_offset_reset="none" if lose_nothing else "earliest",
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
            store="memory://",
            datadir=str(datadir),
            producer_linger_ms=20,
        )
        self._arrivals = Arrivals()
        self._overdue: dict[TP, tuple[int, int]] = {}
        self.app.transport = _Transport(self._arrivals, self.app.conf.broker_consumer, self.app)
        topic = self.app.topic(ItemPublish.topic, key_serializer="raw", value_serializer="raw")
        self.app.agent(topic, name="covers")(self._agent)
        self.app.on_partitions_revoked.connect(self._revoked, weak=False)
        self.app.on_partitions_assigned.connect(self._given, weak=False)

    async def _agent(self, stream: StreamT[Any]) -> None:
        stream.enable_acks = False
        async for event in stream.events():
            if self._stopping:
                return
            tp = event.message.tp
            match self._arrivals.see(_partition(tp), event.message.offset):
                case Arrival.NEXT:
                    await self._lane.take(message_of(event), event)
                case Arrival.GAP:
                    await self._ask_again(tp, f"{event.message.offset} came")

    async def look(self) -> None:
        """Ask again for what is overdue. Call it every `OVERDUE_SECONDS`."""
        consumer = self.app.consumer
        if self._lane.full or not self.app.flow_control.is_active() or not self.assigned:
            self._overdue.clear()
            return
        waited, self._overdue = self._overdue, {}
        for tp in consumer.assignment():
            awaited = self._arrivals.next(_partition(tp))
            try:
                end = consumer.highwater(tp)
            except (AssertionError, AttributeError):  # aiokafka's, where it has just been taken away
                continue
            if awaited is None or end is None or awaited >= end:
                continue
            before, looks = waited.get(tp, (awaited, 0))
            looks = looks + 1 if before == awaited else 1
            self._overdue[tp] = (awaited, looks)
            if looks > 1 and looks & (looks - 1) == 0:  # at 2, 4, 8, … looks
                self._arrivals.begin(_partition(tp), awaited)  # what came in its place may be gone by now, too
                await self._ask_again(tp, "nothing came")

    async def _ask_again(self, tp: TP, why: str) -> None:
        awaited = self._arrivals.next(_partition(tp))
        log.warning("%s[%d]: asks for offset %s again, %s", tp.topic, tp.partition, awaited, why)
        metrics.ASKED_AGAIN.inc()
        try:
            await self.app.consumer.seek_wait({tp: awaited})
        except Exception as error:  # it has just been taken away; then the group's offset is where it goes on
            log.info("%s[%d]: %s", tp.topic, tp.partition, error)

    async def _revoked(self, _: Any, revoked: set[TP], **__: Any) -> None:
        gone = [_partition(tp) for tp in revoked]
        self._arrivals.forget(gone)
        await self._lane.drop(gone)

    async def _given(self, _: Any, __: set[TP], **___: Any) -> None:
        self.assigned = True

    async def start(self) -> None:
        await self.app.start()

    def stop_taking(self) -> None:
        self._stopping = True

    async def stop(self) -> None:
        """Commit what is acked and leave the group."""
        await self.app.stop()

    @property
    def crashed(self) -> BaseException | None:
        """Why Faust has given up, None while it runs."""
        if not self.app.crashed:
            return None
        reason = self.app.crash_reason
        if isinstance(reason, OffsetOutOfRangeError):
            return OffsetLost(f"{ItemPublish.topic}: the broker no longer has the next offset: {reason}")
        return reason or RuntimeError("Faust crashed")
