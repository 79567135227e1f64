"""Raw Kafka messages of `user-behavior` to columns, 3 µs an event (`bench/learn.py`).

The fast path accepts a subset of what `events.UserBehavior` accepts; whatever it cannot take is put before
`UserBehavior` itself, whose answer counts: so a bad event is refused with the schema's own reason, and this decoder and
the schema disagree in one thing alone. A JSON key may be given twice: here the last counts, as with most readers, while
the schema refuses it. msgspec does not tell. The cheapest sound look, to encode a batch again and compare lengths,
takes 0.22 µs an event (2 % of what the learner takes for one), and is enough only for compact JSON of known fields:
all other producers' events would have to be parsed once more, in Python.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Annotated, Any, Literal, Protocol

import mmh3
import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workers.events import BadEvent, UserBehavior

IMPRESSION, CLICK, LIKE, DISLIKE, DWELL = range(5)
KINDS = {"impression": IMPRESSION, "click": CLICK, "like": LIKE, "dislike": DISLIKE, "dwell": DWELL}
FUTURE = 600_000_000
"""µs that an event may be ahead of its own Kafka timestamp: one wrong clock may not move the watermark for all."""
PART = 1_000
"""Events decoded at a time. About 1 kB of objects each, they then stay in a core's cache: `bench/learn.py` decodes
289,000 or more a second, and 215,000 with 10,000 at a time."""

_ALLOWED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-"
_HEX = b"0123456789abcdef"
_GOOD_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._~-]{1,128}\Z")
_GOOD_COVER = re.compile(r"[0-9a-f]{64}\Z")


class RawMessage(Protocol):
    """What is used of `confluent_kafka.Message`."""

    def value(self) -> bytes | None: ...
    def offset(self) -> int: ...
    def timestamp(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class Columns:
    """A batch of good events of one partition in offset order, one entry an event."""

    offset: NDArray[np.int64]
    time: NDArray[np.int64]  # event time, µs since 1970
    kind: NDArray[np.int8]  # IMPRESSION … DWELL
    key: NDArray[np.uint64]  # [n, 2] 128-bit hash of event_id
    user: list[str]
    item: list[str]
    cover: list[str | None]
    impression: list[str | None]
    decision: list[str | None]
    position_propensity: list[float | None]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: NDArray[np.int64]) -> Columns:
        """These rows of it."""
        picked = [[column[row] for row in rows.tolist()] for column in self._lists()]
        return self._of((column[rows] for column in self._arrays()), picked)

    def span(self, start: int, end: int) -> Columns:
        """Rows start to end."""
        if start == 0 and end == len(self):
            return self
        cut = slice(start, end)
        return self._of((column[cut] for column in self._arrays()), (column[cut] for column in self._lists()))

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """One batch of several, in their order."""
        if len(parts) == 1:
            return parts[0]
        arrays = (np.concatenate(column) for column in zip(*(part._arrays() for part in parts), strict=True))
        lists = (list(chain(*column)) for column in zip(*(part._lists() for part in parts), strict=True))
        return cls._of(arrays, lists)

    @classmethod
    def _of(cls, arrays: Iterable[NDArray[Any]], lists: Iterable[list[Any]]) -> Columns:
        offset, time, kind, key = arrays
        return cls(offset, time, kind, key, *lists)

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return self.offset, self.time, self.kind, self.key

    def _lists(self) -> tuple[list[Any], ...]:
        return self.user, self.item, self.cover, self.impression, self.decision, self.position_propensity


@dataclass(frozen=True, slots=True)
class Bad:
    """An event for `dead-letters`: which of the messages, and why."""

    index: int
    reason: str


_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class _Behavior(msgspec.Struct, gc=False):
    event_id: _Id
    user_id: _Id
    item_id: _Id
    kind: Literal["impression", "click", "like", "dislike", "dwell"]
    time: str | None = None
    cover_id: str | None = None
    segment_id: _Id | None = None
    impression_id: _Id | None = None
    page_id: _Id | None = None
    surface: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    position: Annotated[int, msgspec.Meta(ge=0, le=10_000)] | None = None
    decision: Annotated[str, msgspec.Meta(max_length=4096)] | None = None
    position_propensity: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    value: float | None = None


_decode = msgspec.json.Decoder(_Behavior).decode
_UNDECODED = (msgspec.DecodeError, TypeError, RecursionError)
"""TypeError: a message without a value. RecursionError: one that is nested a thousand deep."""
_NOTHING = _Behavior("-", "-", "-", "dwell")  # stands where an event was refused, until the batch is cut down
_fields: dict[str, operator.attrgetter[Any]] = {name: operator.attrgetter(name) for name in _Behavior.__struct_fields__}


def decode(messages: Sequence[RawMessage]) -> tuple[Columns, list[Bad]]:
    """Messages of one partition, in offset order, to columns and to what is bad, in the same order."""
    n = len(messages)
    offset = np.fromiter([message.offset() for message in messages], np.int64, n)
    stamp = np.fromiter(map(operator.itemgetter(1), [message.timestamp() for message in messages]), np.int64, n)
    return decode_values([message.value() for message in messages], offset, stamp * 1000)


def decode_values(
    values: Sequence[bytes | None], offset: NDArray[np.int64], stamp: NDArray[np.int64]
) -> tuple[Columns, list[Bad]]:
    """The same from the messages' values, offsets and timestamps (µs; below 0 where a message has none)."""
    parts: list[Columns] = []
    bad: list[Bad] = []
    for start in range(0, max(1, len(values)), PART):
        part = slice(start, start + PART)
        columns, refused = _decoded(values[part], offset[part], stamp[part])
        parts.append(columns)
        bad += [Bad(start + item.index, item.reason) for item in refused]
    return Columns.joined(parts), bad


def _decoded(
    values: Sequence[bytes | None], offset: NDArray[np.int64], stamp: NDArray[np.int64]
) -> tuple[Columns, list[Bad]]:
    n = len(values)
    try:
        events: list[_Behavior] = list(map(_decode, values))  # type: ignore[arg-type]
        doubtful = np.zeros(n, bool)
    except _UNDECODED:
        events, doubtful = _each(values)
    if not _ids_are_good(events):
        doubtful |= np.fromiter((not _id_is_good(event) for event in events), bool, n)
    time, unreadable = _times(events, stamp)
    doubtful |= unreadable

    bad: list[Bad] = []
    for row in np.flatnonzero(doubtful).tolist():
        try:
            event = UserBehavior.decode(values[row])
        except BadEvent as error:
            bad.append(Bad(row, str(error)))
        else:
            events[row] = _translated(event)
            time[row] = _micros(event.time) if "time" in event.model_fields_set else stamp[row]
    # A message without a timestamp (librdkafka says -1) cannot date its event, and is not held against it.
    ahead = (time > stamp + FUTURE) & (stamp >= 0)
    ahead[[item.index for item in bad]] = False
    bad += [Bad(row, _ahead(int(time[row]), int(stamp[row]))) for row in np.flatnonzero(ahead).tolist()]
    if bad:
        bad.sort(key=operator.attrgetter("index"))
        good = np.delete(np.arange(n), [item.index for item in bad])
        events, offset, time = [events[row] for row in good.tolist()], offset[good], time[good]
    return _columns(events, offset, time), bad


def keys_of(ids: Sequence[str]) -> NDArray[np.uint64]:
    """[n, 2] MurmurHash3 x64 128 of ids: two ids of a window of 2**21 agree with odds of 2**-86."""
    return np.frombuffer(b"".join(map(mmh3.hash_bytes, ids)), np.uint64).reshape(-1, 2)


def _columns(events: list[_Behavior], offset: NDArray[np.int64], time: NDArray[np.int64]) -> Columns:
    def column(name: str) -> list[Any]:
        return list(map(_fields[name], events))

    return Columns(
        offset=offset,
        time=time,
        kind=np.fromiter(map(KINDS.__getitem__, column("kind")), np.int8, len(events)),
        key=keys_of(column("event_id")),
        user=column("user_id"),
        item=column("item_id"),
        cover=column("cover_id"),
        impression=column("impression_id"),
        decision=column("decision"),
        position_propensity=column("position_propensity"),
    )


def _each(values: Sequence[bytes | None]) -> tuple[list[_Behavior], NDArray[np.bool_]]:
    """Event by event, for a batch in which one is bad."""
    events, doubtful = [_NOTHING] * len(values), np.zeros(len(values), bool)
    for row, value in enumerate(values):
        try:
            events[row] = _decode(value)  # type: ignore[arg-type]
        except _UNDECODED:
            doubtful[row] = True
    return events, doubtful


def _ids_are_good(events: list[_Behavior]) -> bool:
    """All ids of a batch in one look: joined by line ends, only those may remain once what is allowed is deleted."""
    ids: list[str] = []
    for name in ("event_id", "user_id", "item_id"):
        ids += map(_fields[name], events)
    for name in ("segment_id", "impression_id", "page_id"):
        ids += filter(None, map(_fields[name], events))  # none is empty: msgspec has looked
    lines = "\n".join(("", *ids, "")).encode("utf-8", "surrogatepass")
    if lines.translate(None, _ALLOWED) != b"\n" * (len(ids) + 1) or b"\n.\n" in lines or b"\n..\n" in lines:
        return False
    covers = {cover for cover in set(map(_fields["cover_id"], events)) if cover is not None}
    text = "".join(covers).encode("utf-8", "surrogatepass")
    return set(map(len, covers)) <= {64} and not text.translate(None, _HEX)


def _id_is_good(event: _Behavior) -> bool:
    ids = (event.event_id, event.user_id, event.item_id, event.segment_id, event.impression_id, event.page_id)
    good = all(_GOOD_ID.match(one) for one in ids if one is not None)
    return good and (event.cover_id is None or _GOOD_COVER.match(event.cover_id) is not None)


def _times(events: list[_Behavior], stamp: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Event times in µs, and which could not be read. An event without a time has its message's."""
    texts = list(map(_fields["time"], events))
    unreadable = np.zeros(len(texts), bool)
    try:
        array = pa.array(texts, pa.string()).cast(pa.timestamp("us", "UTC"))
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        readable = [_readable(text) for text in texts]
        unreadable = np.array([text is not None and time is None for text, time in zip(texts, readable, strict=True)])
        array = pa.array(readable, pa.timestamp("us", "UTC"))
    time = array.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False).copy()
    absent = np.asarray(array.is_null()) & ~unreadable
    time[absent] = stamp[absent]
    return time, unreadable


def _readable(text: str | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(text) if text is not None else None
    except ValueError:
        return None
    return time if time is not None and time.tzinfo is not None else None


def _micros(time: datetime) -> int:
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _translated(event: UserBehavior) -> _Behavior:
    values = event.model_dump(mode="json", include=set(_fields), exclude={"time"})
    return _Behavior(time=None, **values)


def _ahead(time: int, stamp: int) -> str:
    return (
        f"time: {(time - stamp) / 1e6:,.0f} s ahead of the message's own timestamp, at most {FUTURE // 1_000_000} are"
    )
