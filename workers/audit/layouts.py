"""What a message becomes in its audit table: one typed column a field, one row an event (`cover-ready`: a cover).

Pure. Columns that could lead to a person are left out of Delta's statistics (`Layout.indexed` names those that are in):
`_delta_log` keeps the smallest and largest value of rows that were deleted long ago.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

import pyarrow as pa

from workers.audit.pseudonyms import Pseudonyms
from workers.events import (
    DEAD_LETTERS,
    CoverReady,
    Event,
    ItemPublish,
    ItemRefresh,
    ModelUpdate,
    UserBehavior,
    UserErasure,
)
from workers.messaging import Message
from workers.records import Part
from workers.tracing import trace_id_of

Row = dict[str, Any]
UNREADABLE = "unreadable"

REWARDS = ("aesthetic", "relevance")
"""Those that every release has are columns of their own; others are found in the map `rewards` alone."""

TIME = pa.timestamp("us", tz="UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MILLISECOND = 4_102_444_800_000  # 2100: a broker time beyond it is a producer's mistake
# Topics whose key, or whose producer's ids, may name a person.
_PERSONAL = {UserBehavior.topic, UserErasure.topic}


@dataclass(frozen=True)
class Layout:
    """A table: its columns, which of them Delta may keep statistics of, and how a message becomes rows."""

    topic: str
    columns: tuple[tuple[str, pa.DataType], ...]
    searched: tuple[str, ...]
    rows: Callable[[Message, Pseudonyms], list[Row]]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*_COMMON, *self.columns])

    @property
    def indexed(self) -> tuple[str, ...]:
        """The columns that Delta keeps statistics of."""
        return (*_COMMON_INDEXED, *self.searched)

    @property
    def view(self) -> str:
        """The table's name in SQL."""
        return self.topic.replace("-", "_")


_COMMON: tuple[tuple[str, pa.DataType], ...] = (
    ("day", pa.date32()),
    ("kafka_partition", pa.int32()),
    ("kafka_offset", pa.int64()),
    ("kafka_time", TIME),
    ("trace_id", pa.string()),
)
_COMMON_INDEXED = ("kafka_partition", "kafka_offset", "kafka_time")


def _common(message: Message) -> Row:
    stamp = message.timestamp_ms
    time = datetime.fromtimestamp(stamp / 1000, UTC) if 0 <= stamp < _LAST_MILLISECOND else _EPOCH
    return {
        "day": time.date(),
        "kafka_partition": message.partition,
        "kafka_offset": message.offset,
        "kafka_time": time,
        "trace_id": trace_id_of(message.headers),
    }


def _header(headers: Mapping[str, bytes], name: str, most: int = 1000) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode(errors="replace")[:most]


def _plain(event: type[Event], names: tuple[str, ...]) -> Callable[[Message, Pseudonyms], list[Row]]:
    """Rows of an event about an item or a release: its fields as they are."""

    def rows(message: Message, _: Pseudonyms) -> list[Row]:
        value = event.decode(message.value)
        row = {name: getattr(value, name) for name in names}
        return [{**_common(message), "event_id": _header(message.headers, "ce_id"), "time": value.time, **row}]

    return rows


def _behavior(message: Message, people: Pseudonyms) -> list[Row]:
    event = UserBehavior.decode(message.value)
    platforms = {
        "event_id": event.event_id,
        "impression_id": event.impression_id,
        "page_id": event.page_id,
        "surface": event.surface,
        "decision": event.decision,
    }
    return [
        {
            **_common(message),
            **people.veil(platforms, event.user_id),
            "time": event.time,
            "user_key": people.key(event.user_id),
            "item_id": event.item_id,
            "cover_id": event.cover_id,
            "segment_id": event.segment_id,
            "kind": event.kind.value,
            "position": event.position,
            "position_propensity": event.position_propensity,
            "value": event.value,
        }
    ]


def _cover_ready(message: Message, _: Pseudonyms) -> list[Row]:
    event = CoverReady.decode(message.value)
    shared = {
        **_common(message),
        "event_id": _header(message.headers, "ce_id"),
        "time": event.time,
        "item_id": event.item_id,
        "item_version": event.item_version,
        "action": event.action,
        "outcome": event.outcome.value,
        "reason": event.reason,
        "source_topic": event.source.topic,
        "source_partition": event.source.partition,
        "source_offset": event.source.offset,
        "source_event_id": event.source.event_id,
        "release": event.release,
        "generation": event.generation,
    }
    # An event without covers (a retract) is a row too, with the columns of a cover empty.
    return [
        {**shared, **cover.model_dump(), **{name: cover.rewards.get(name) for name in REWARDS}}
        for cover in event.covers
    ] or [shared]


def _model_update(message: Message, _: Pseudonyms) -> list[Row]:
    event = ModelUpdate.decode(message.value)
    return [
        {
            **_common(message),
            "event_id": _header(message.headers, "ce_id"),
            "time": event.time,
            "number": event.number,
            "part": event.part,
            "reason": event.reason,
            **{f"{part}_revision": event.parts.get(part) for part in get_args(Part)},
        }
    ]


def _dead_letter(message: Message, people: Pseudonyms) -> list[Row]:
    """Why and where from, never the bytes: what was refused may hold anything, a person's name too."""
    headers = message.headers
    topic = _header(headers, "dlq_topic")
    reason = _header(headers, "dlq_reason") or "no reason was given"
    key = message.key.decode(errors="replace")[:128] if message.key else None
    event_id = _header(headers, "ce_id", 200)
    personal = topic is None or topic in _PERSONAL
    if personal:
        reason = people.redact(reason, key or "")
        event_id = people.key(event_id) if event_id else None
    return [
        {
            **_common(message),
            "event_id": event_id,
            "time": _time(_header(headers, "dlq_time")),
            "item_id": None if personal else key,
            "user_key": people.key(key) if personal and key else None,
            "reason": reason,
            "source_topic": topic,
            "source_partition": _number(_header(headers, "dlq_partition")),
            "source_offset": _number(_header(headers, "dlq_offset")),
            "service": _header(headers, "dlq_service"),
            "attempt": _number(_header(headers, "dlq_attempt")),
            "bytes": len(message.value or b""),
        }
    ]


def unreadable(message: Message, reason: str, people: Pseudonyms) -> Row:
    """The row that says that a message could not become one of its topic's: where it lies and why, without bytes."""
    key = message.key.decode(errors="replace") if message.key else ""
    return {
        **_common(message),
        "topic": message.topic,
        "reason": people.redact(reason, key)[:1000],
        "bytes": len(message.value or b""),
    }


def _no_rows(message: Message, _: Pseudonyms) -> list[Row]:
    raise TypeError(f"{message.topic} is not read into {UNREADABLE}")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None


def _time(text: str | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return time if time.tzinfo else None


_TEXT = pa.string()
_SOURCE: tuple[tuple[str, pa.DataType], ...] = (
    ("source_topic", _TEXT),
    ("source_partition", pa.int32()),
    ("source_offset", pa.int64()),
)

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        ItemPublish.topic,
        (
            ("event_id", _TEXT),
            ("time", TIME),
            ("item_id", _TEXT),
            ("item_version", pa.int64()),
            ("action", _TEXT),
            ("title", _TEXT),
            ("reference_image", _TEXT),
            ("category", _TEXT),
            ("language", _TEXT),
        ),
        ("time", "item_id"),
        _plain(
            ItemPublish,
            ("item_id", "item_version", "action", "title", "reference_image", "category", "language"),
        ),
    ),
    Layout(
        ItemRefresh.topic,
        (
            ("event_id", _TEXT),
            ("time", TIME),
            ("item_id", _TEXT),
            ("item_version", pa.int64()),
            ("segments", pa.list_(_TEXT)),
            ("reason", _TEXT),
            ("release", pa.int64()),
            ("priority", pa.int32()),
        ),
        ("time", "item_id"),
        _plain(ItemRefresh, ("item_id", "item_version", "segments", "reason", "release", "priority")),
    ),
    Layout(
        UserBehavior.topic,
        (
            ("event_id", _TEXT),
            ("time", TIME),
            ("user_key", _TEXT),
            ("item_id", _TEXT),
            ("cover_id", _TEXT),
            ("segment_id", _TEXT),
            ("kind", _TEXT),
            ("impression_id", _TEXT),
            ("page_id", _TEXT),
            ("surface", _TEXT),
            ("position", pa.int32()),
            ("position_propensity", pa.float64()),
            ("decision", _TEXT),
            ("value", pa.float64()),
        ),
        # Neither user_key nor the platform's own ids, which may be made from a user's.
        ("time", "item_id", "kind"),
        _behavior,
    ),
    Layout(
        CoverReady.topic,
        (
            ("event_id", _TEXT),
            ("time", TIME),
            ("item_id", _TEXT),
            ("item_version", pa.int64()),
            ("action", _TEXT),
            ("outcome", _TEXT),
            ("reason", _TEXT),
            *_SOURCE,
            ("source_event_id", _TEXT),
            ("release", pa.int64()),
            ("generation", pa.int64()),
            ("segment_id", _TEXT),
            ("rendition", _TEXT),
            ("cover_id", _TEXT),
            ("address", _TEXT),
            ("sha256", _TEXT),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("format", _TEXT),
            ("rewards", pa.map_(_TEXT, pa.float64())),
            *((name, pa.float64()) for name in REWARDS),
            ("fallback", _TEXT),
        ),
        ("time", "item_id", "generation", "cover_id"),
        _cover_ready,
    ),
    Layout(
        ModelUpdate.topic,
        (
            ("event_id", _TEXT),
            ("time", TIME),
            ("number", pa.int64()),
            ("part", _TEXT),
            ("reason", _TEXT),
            *((f"{part}_revision", _TEXT) for part in get_args(Part)),
        ),
        ("time", "number"),
        _model_update,
    ),
    Layout(
        DEAD_LETTERS,
        (
            ("event_id", _TEXT),
            ("time", TIME),
            ("item_id", _TEXT),
            ("user_key", _TEXT),
            ("reason", _TEXT),
            *_SOURCE,
            ("service", _TEXT),
            ("attempt", pa.int64()),
            ("bytes", pa.int64()),
        ),
        ("time",),
        _dead_letter,
    ),
)
"""Every topic but `user-erasure`, which would name whom to forget, and `preference-pairs`, which is only fuel."""

UNREADABLE_LAYOUT = Layout(
    UNREADABLE, (("topic", _TEXT), ("reason", _TEXT), ("bytes", pa.int64())), ("topic",), _no_rows
)
