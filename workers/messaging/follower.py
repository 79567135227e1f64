"""Reading a topic without a group."""

from __future__ import annotations

import time
import uuid

import confluent_kafka
from confluent_kafka import KafkaException, TopicPartition

from workers.exceptions import MessagingFault
from workers.messaging.client import REFUSALS, Client, Start, client_config, connect, some
from workers.messaging.message import Message
from workers.settings import Kafka


class Follower(Client):
    """All partitions of one topic WITHOUT a group: every follower sees every message, nothing is committed.

    It begins with what the broker still has: a follower that was away too long goes on at the oldest message left.
    """

    def __init__(self, settings: Kafka, topic: str, start: Start = "earliest", timeout: float = 10.0) -> None:
        """
        Args:
            start: `latest` means: messages produced after this call has returned, none of them missed.
            timeout: seconds for each question to the broker.

        Raises:
            MessagingFault: the broker does not answer, or the topic is not there within `timeout` seconds.
        """
        self.topic = topic
        self._client = connect(
            confluent_kafka.Consumer,
            {
                **client_config(settings),
                "group.id": f"icg-follower-{uuid.uuid4()}",  # librdkafka wants one; without subscribe it joins nothing
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
                "fetch.error.backoff.ms": 100,
            },
        )
        try:
            partitions = [TopicPartition(topic, number) for number in self._partitions(timeout)]
            for each in partitions:
                low, high = self._ends(each, timeout)
                each.offset = low if start == "earliest" else high
            self._client.assign(partitions)
        except KafkaException as error:
            self._client.close()
            raise MessagingFault(f"{topic}: {error.args[0].str()}") from None
        self._next = {each.partition: each.offset for each in partitions}

    def _partitions(self, timeout: float) -> list[int]:
        until = time.monotonic() + timeout
        while True:
            found = self._client.list_topics(self.topic, timeout=timeout).topics[self.topic]
            if found.error is None and found.partitions:
                return sorted(found.partitions)
            if time.monotonic() > until:
                raise KafkaException(found.error)
            time.sleep(0.1)

    def _ends(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        until = time.monotonic() + timeout
        while True:
            try:
                low, high = self._client.get_watermark_offsets(partition, timeout=timeout)
                return low, high
            except KafkaException:
                # A topic made a moment ago: its metadata names the partition before its leader knows that it leads.
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def poll(self, most: int, timeout: float) -> list[Message]:
        """Up to `most` messages; [] after `timeout` seconds.

        Raises:
            MessagingFault: the broker refuses us.
        """
        good = []
        for record in some(self._client, most, timeout):
            error = record.error()
            if error is None:
                self._next[record.partition()] = record.offset() + 1
                good.append(Message.of(record))
            elif error.fatal() or error.code() in REFUSALS:
                raise MessagingFault(f"{self.topic}: {error.str()}")
        return good

    def caught_up(self, timeout: float = 5.0) -> bool:
        """Has `poll` returned everything that the topic holds at this moment?

        Raises:
            MessagingFault: the broker does not answer within `timeout` seconds.
        """
        try:
            for number, position in self._next.items():
                _, high = self._client.get_watermark_offsets(TopicPartition(self.topic, number), timeout=timeout)
                if position < high:
                    return False
        except KafkaException as error:
            raise MessagingFault(f"{self.topic}: {error.args[0].str()}") from None
        return True

    def close(self) -> None:
        self._client.close()
