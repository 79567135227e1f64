"""One consumed record."""

from __future__ import annotations

from dataclasses import dataclass, field

import confluent_kafka

from workers.events import Source


@dataclass(frozen=True, slots=True)
class Message:
    """One consumed record. Of a header that is there twice the last value counts."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes] = field(default_factory=dict)
    timestamp_ms: int = 0

    @classmethod
    def of(cls, record: confluent_kafka.Message) -> Message:
        return cls(
            record.topic(),
            record.partition(),
            record.offset(),
            record.key(),
            record.value(),
            {name: value or b"" for name, value in record.headers() or ()},
            record.timestamp()[1],
        )

    @property
    def attempt(self) -> int:
        """Which one this is, if a dead letter was sent again; 1 where the header is missing or no such number."""
        given = self.headers.get("dlq_attempt", b"")
        return int(given) if given.isdigit() and len(given) < 6 else 1

    def source(self) -> Source:
        """Where it lies, and its producer's own id (`ce_id`) if it has one."""
        given = self.headers.get("ce_id")
        return Source(
            topic=self.topic,
            partition=self.partition,
            offset=self.offset,
            event_id=given.decode("utf-8", "replace") if given else None,
        )
