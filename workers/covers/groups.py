"""What a consumer group has committed, seen from outside of it: where to begin, and how far it is behind."""

from __future__ import annotations

import logging

from confluent_kafka import Consumer, KafkaException, TopicPartition

from workers.exceptions import MessagingFault
from workers.messaging import client_config
from workers.settings import Kafka

log = logging.getLogger(__name__)

TIMEOUT = 5.0


class Group:
    """One group on one topic. Does not join it; its calls block for some seconds at most."""

    def __init__(self, settings: Kafka, group: str, topic: str) -> None:
        self.group = group
        self.topic = topic
        config = {**client_config(settings), "group.id": group, "enable.auto.commit": False}
        self._client = Consumer(config, logger=log)

    def begin(self) -> bool:
        """Commit the beginning of each partition that the group never committed.

        From then on an offset that the broker no longer has is an error and not a silent jump to what it still has.

        Returns:
            Whether every partition has a committed offset now. A group with members lets nobody else commit.

        Raises:
            MessagingFault: the broker does not answer.
        """
        try:
            fresh = [each for each in self._committed() if each.offset < 0]
            for each in fresh:
                each.offset, _ = self._client.get_watermark_offsets(each, timeout=TIMEOUT)
        except KafkaException as error:
            raise MessagingFault(f"{self.group}: {error.args[0].str()}") from None
        if not fresh:
            return True
        try:
            done = self._client.commit(offsets=fresh, asynchronous=False)
        except KafkaException as error:
            log.info("%s: the group has members already: %s", self.group, error.args[0].str())
            return False
        return all(each.error is None for each in done)

    def lag(self) -> int:
        """Messages of the topic that the group has not committed.

        Raises:
            MessagingFault: the broker does not answer.
        """
        behind = 0
        try:
            for each in self._committed():
                low, high = self._client.get_watermark_offsets(each, timeout=TIMEOUT)
                behind += high - max(each.offset, low)
        except KafkaException as error:
            raise MessagingFault(f"{self.group}: {error.args[0].str()}") from None
        return behind

    def _committed(self) -> list[TopicPartition]:
        found = self._client.list_topics(self.topic, timeout=TIMEOUT).topics[self.topic]
        partitions = [TopicPartition(self.topic, number) for number in found.partitions]
        return list(self._client.committed(partitions, timeout=TIMEOUT))

    def close(self) -> None:
        self._client.close()
