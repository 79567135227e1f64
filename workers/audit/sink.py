"""From messages to committed rows: a buffer of decoded rows in front of the tables."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import date

import pyarrow as pa

from workers.audit.delta import AuditTable
from workers.audit.layouts import LAYOUTS, UNREADABLE_LAYOUT, Row, unreadable
from workers.audit.pseudonyms import Pseudonyms
from workers.erased import Erased
from workers.events import BadEvent
from workers.messaging import Message
from workers.settings import Settings

log = logging.getLogger(__name__)

TOPICS: tuple[str, ...] = tuple(layout.topic for layout in LAYOUTS)
Partition = tuple[str, int]

_DOES_NOT_FIT = (pa.ArrowException, OverflowError, UnicodeError, ValueError)
"""What building a column raises for a value that its type cannot hold, as an integer that the schema does not bound."""


class Sink:
    """Rows wait here until `flush` has them all in their tables. For one thread."""

    def __init__(self, settings: Settings, erased: Erased | None = None) -> None:
        """
        Args:
            erased: whose rows are dropped; None: nobody's.
        """
        self._erased = erased
        self._people = Pseudonyms(settings.audit.user_key.get_secret_value())
        self._most_files = settings.audit.compact_files
        self._layouts = {layout.topic: layout for layout in LAYOUTS}
        self._tables = {layout.topic: AuditTable(layout, settings.s3) for layout in (*LAYOUTS, UNREADABLE_LAYOUT)}
        self._rows: dict[str, list[tuple[Message, list[Row]]]] = defaultdict(list)
        self._bad: list[tuple[Message, str]] = []
        self._next: dict[Partition, int] = {}
        self._since: float | None = None

    def take(self, messages: Iterable[Message]) -> None:
        """Decode messages into the buffer. A bad one becomes a row of `audit/unreadable`, never an exception."""
        for message in messages:
            if self._since is None:
                self._since = time.monotonic()
            try:
                rows = self._layouts[message.topic].rows(message, self._people)
                if not self._forgotten(rows):
                    self._rows[message.topic].append((message, rows))
            except (BadEvent, *_DOES_NOT_FIT) as error:
                self._bad.append((message, str(error)))
            self._next[message.topic, message.partition] = message.offset + 1

    def _forgotten(self, rows: list[Row]) -> bool:
        """Whether they are of somebody who was erased. Their offsets count as read."""
        if not self._erased:
            return False
        return any(self._erased.has_key(key) for row in rows if (key := row.get("user_key")) is not None)

    def forget(self) -> None:
        """Drop what waits here of people who were erased meanwhile."""
        for entries in self._rows.values():
            entries[:] = [entry for entry in entries if not self._forgotten(entry[1])]
        if not self.messages:
            self._since = None

    @property
    def messages(self) -> int:
        return sum(map(len, self._rows.values())) + len(self._bad)

    def headers(self) -> Iterator[Mapping[str, bytes]]:
        """Of the messages in the buffer, for whoever traces."""
        return (message.headers for entries in self._rows.values() for message, _ in entries)

    @property
    def age(self) -> float:
        """Seconds since the oldest message in the buffer was taken; 0.0 when there is none."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def drop(self, partitions: set[Partition]) -> None:
        """Forget what came from these: whoever owns them now reads them again from their committed offset."""
        for topic, entries in self._rows.items():
            entries[:] = [entry for entry in entries if (topic, entry[0].partition) not in partitions]
        self._bad = [entry for entry in self._bad if (entry[0].topic, entry[0].partition) not in partitions]
        for partition in partitions:
            self._next.pop(partition, None)
        if not self.messages:
            self._since = None

    def flush(self) -> dict[str, int]:
        """Append everything, one commit a table, and empty the buffer.

        Returns:
            New rows by table. What had been appended before (a replay) is not in it.

        Raises:
            StorageFault: the buffer is as it was; call again. What did get through is then recognised.
        """
        new: dict[str, int] = {}
        for topic, entries in self._rows.items():
            if entries:
                new[topic] = self._append(topic, entries)
        if self._bad:
            rows = [(message.topic, unreadable(message, reason, self._people)) for message, reason in self._bad]
            new[UNREADABLE_LAYOUT.topic] = self._tables[UNREADABLE_LAYOUT.topic].append(rows)
        self._rows.clear()
        self._bad.clear()
        self._since = None
        return new

    def take_offsets(self) -> dict[Partition, int]:
        """The next offset to read of each partition, for a commit after `flush`; forgotten once taken."""
        offsets, self._next = self._next, {}
        return offsets

    def compact(self, tables: Iterable[str]) -> dict[str, list[date]]:
        """Merge small files of these tables; which days of which were merged."""
        done = {name: self._tables[name].compact(self._most_files) for name in tables}
        return {name: days for name, days in done.items() if days}

    def _append(self, topic: str, entries: list[tuple[Message, list[Row]]]) -> int:
        table = self._tables[topic]
        try:
            return table.append([(topic, row) for _, rows in entries for row in rows])
        except _DOES_NOT_FIT as error:
            log.warning("audit/%s: a value does not fit its column, looking for the row: %s", topic, error)
        schema = table.layout.schema
        fitting = []
        for message, rows in entries:
            try:
                pa.Table.from_pylist(rows, schema=schema)
            except _DOES_NOT_FIT as error:
                self._bad.append((message, f"a value does not fit its column: {type(error).__name__}"))
            else:
                fitting.append((message, rows))
        entries[:] = fitting
        return table.append([(topic, row) for _, rows in fitting for row in rows]) if fitting else 0
