"""`item-publish` by Faust: one app, one agent, manual acks.

What Faust offers beyond that stays off, each for a reason found in its source: automatic acks (an exception would ack
its event), `concurrency` (commits past unfinished offsets), `take` (acks a failed batch), tables, the web server,
leader election and topic creation. What it knows of offsets is not relied on either, see `Arrivals`.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

import faust
from aiokafka.errors import OffsetOutOfRangeError
from faust.assignor import PartitionAssignor
from faust.types import TP, EventT, StreamT

from workers.covers import metrics
from workers.covers.acks import Ticket
from workers.covers.arrivals import Arrival, Arrivals
from workers.covers.driver import ArrivalsTransport, LateLeader, partition_of
from workers.covers.lane import Lane
from workers.events import ItemPublish
from workers.exceptions import OffsetLost
from workers.messaging import Message
from workers.settings import Kafka

log = logging.getLogger(__name__)

GROUP = "icg-covers"
OVERDUE_SECONDS = 10.0
"""After which a message that is there and does not come, though there is room for it, is asked for again."""
_DAY = 24 * 3600.0


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

    def __init__(self, settings: Kafka, lane: Lane[EventT[Any]], batch: int, datadir: Path) -> None:
        """
        Args:
            batch: items of one batch; Faust buffers twice as many.
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
            # An offset that is gone is an error; where the group has none the driver begins at the beginning.
            consumer_auto_offset_reset="none",
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
            PartitionAssignor=LateLeader if settings.embedded else PartitionAssignor,
            store="memory://",
            datadir=str(datadir),
            producer_linger_ms=20,
        )
        self._arrivals = Arrivals()
        self._overdue: dict[TP, tuple[int, int]] = {}
        self.app.transport = ArrivalsTransport(self._arrivals, self.app.conf.broker_consumer, self.app)
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
            match self._arrivals.see(partition_of(tp), event.message.offset):
                case Arrival.NEXT:
                    await self._lane.take(message_of(event), event)
                case Arrival.GAP:
                    await self._ask_again(tp, f"{event.message.offset} came")

    async def look(self) -> None:
        """Ask again for what is overdue, and commit past what is no message. Call it every `OVERDUE_SECONDS`."""
        consumer = self.app.consumer
        if self._lane.full or not self.app.flow_control.is_active() or not self.assigned:
            self._overdue.clear()
            return
        past = {tp: end for tp in consumer.assignment() if (end := self._arrivals.past(partition_of(tp))) is not None}
        if past:  # else an aborted transaction at the end of a partition would be lag until something is published
            try:
                await consumer._commit(past)
            except Exception as error:  # then it is
                log.info("%s: aborted transactions stay lag until something is published: %s", GROUP, error)
        waited, self._overdue = self._overdue, {}
        for tp in consumer.assignment():
            awaited = self._arrivals.next(partition_of(tp))
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
                self._arrivals.again(partition_of(tp))  # what came in its place may be gone by now, too
                await self._ask_again(tp, "nothing came")

    async def _ask_again(self, tp: TP, why: str) -> None:
        awaited = self._arrivals.next(partition_of(tp))
        log.warning("%s[%d]: asks for offset %s again, %s", tp.topic, tp.partition, awaited, why)
        metrics.ASKED_AGAIN.inc()
        try:
            await self.app.consumer.seek_wait({tp: awaited})
        except Exception as error:  # it has just been taken away; then the group's offset is where it goes on
            log.info("%s[%d]: it cannot be asked for now: %s", tp.topic, tp.partition, error)
            self._arrivals.again(partition_of(tp))

    async def _revoked(self, _: Any, revoked: set[TP], **__: Any) -> None:
        gone = [partition_of(tp) for tp in revoked]
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
