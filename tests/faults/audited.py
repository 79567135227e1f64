"""What Kafka has, and what audit's tables have of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import confluent_kafka
from confluent_kafka import TopicPartition

from tests.faults.checker import Source
from workers.audit.layouts import LAYOUTS, UNREADABLE_LAYOUT
from workers.audit.pseudonyms import Pseudonyms
from workers.events import BadEvent
from workers.messaging import Message, client_config
from workers.settings import S3, Kafka
from workers.tables import open_table


def logged(kafka: Kafka, topic: str, seconds: float = 120) -> dict[int, list[Any]]:
    """Every message that a topic has now, as confluent-kafka's, by partition."""
    client = confluent_kafka.Consumer(
        client_config(kafka) | {"group.id": "icg-faults-checker", "enable.auto.commit": False}
    )
    until = time.monotonic() + seconds
    found: dict[int, list[Any]] = {}
    try:
        wanted = {}
        for number in client.list_topics(topic, timeout=20).topics[topic].partitions:
            low, high = client.get_watermark_offsets(TopicPartition(topic, number), timeout=20)
            found[number], wanted[number] = [], high
            client.assign([TopicPartition(topic, number, low)])
            while high > low and (not found[number] or found[number][-1].offset() < high - 1):
                found[number] += [each for each in client.consume(1000, 0.2) if each.error() is None]
                if time.monotonic() > until:
                    raise TimeoutError(f"{topic}[{number}]: {len(found[number])} messages, it ends at {high}")
    finally:
        client.close()
    return found


def rows_wanted(kafka: Kafka) -> Counter[Source]:
    """How many rows each message has to have."""
    people = Pseudonyms("icg-demo")
    wanted: Counter[Source] = Counter()
    for layout in LAYOUTS:
        for messages in logged(kafka, layout.topic).values():
            for record in messages:
                message = Message.of(record)
                try:
                    rows: Sequence[Any] = layout.rows(message, people)
                except BadEvent:
                    rows = [None]  # one in the table of what cannot be read
                wanted[message.topic, message.partition, message.offset] = len(rows)
    return wanted


def rows_found(s3: S3) -> Counter[Source]:
    """How many rows of each message there are, in whatever table."""
    found: Counter[Source] = Counter()
    for layout in (*LAYOUTS, UNREADABLE_LAYOUT):
        table = open_table(s3, layout.topic)
        if table is None:
            continue
        own = layout is UNREADABLE_LAYOUT
        columns = ["kafka_partition", "kafka_offset", *(["topic"] if own else [])]
        for row in table.to_pyarrow_table(columns=columns).to_pylist():
            found[row["topic"] if own else layout.topic, row["kafka_partition"], row["kafka_offset"]] += 1
    return found
