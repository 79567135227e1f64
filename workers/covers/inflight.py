"""Which events were being drawn when a worker died: the way to find the one that kills it.

Before a batch is drawn its offsets are written down in S3, one small object a partition, so that whoever owns the
partition next reads them. What was in flight at two deaths is drawn alone; if it kills again it is a bad event.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from workers.covers.acks import Partition
from workers.exceptions import Conflict, StorageFault
from workers.storage import ObjectStore

DRAW_ALONE = 2
"""Deaths after which an event is drawn in a batch of its own."""
GIVE_UP = 3
"""Deaths after which an event is bad."""
HANGING = 60.0
"""Seconds in the making after which an event is suspected of hanging, and its partition's moving counts as a death."""


def record_key(partition: Partition) -> str:
    return f"inflight/{partition[0]}/{partition[1]}.json"


class InFlight:
    """Deaths an offset has seen, by partition. Thread-safe, with one writer (`load`, `begin`) at a time a partition."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()  # of the three below
        self._etags: dict[Partition, str | None] = {}
        self._deaths: dict[Partition, dict[int, int]] = {}
        self._drawing: dict[Partition, dict[int, float]] = {}  # since when, by offset

    def load(self, partition: Partition) -> None:
        """Read what the partition's last owner left. Once for each assignment, before its first event.

        Raises:
            StorageFault: read again.
        """
        stored = self._store.get(record_key(partition))
        with self._lock:
            self._etags[partition] = stored.etag if stored else None
            self._deaths[partition] = parse(stored.data) if stored else {}
            self._drawing.setdefault(partition, {})

    def known(self, partition: Partition) -> bool:
        return partition in self._deaths

    def hand_over(self, partitions: Iterable[Partition]) -> Callable[[], None]:
        """The partitions belong to somebody else from now on. Does not block.

        Returns:
            What writes down that what is in flight has killed nobody, for their next owner. Blocks; a record that
            cannot be written, or that the next owner has written already, counts a death too many.
        """
        left: list[tuple[Partition, dict[int, int], str | None]] = []
        late = time.monotonic() - HANGING
        with self._lock:
            for partition in partitions:
                drawing = self._drawing.pop(partition, None)
                deaths, etag = self._deaths.pop(partition, {}), self._etags.pop(partition, None)
                if drawing:
                    hanging = {offset: deaths.get(offset, 0) + 1 for offset, begun in drawing.items() if begun < late}
                    left.append((partition, deaths | hanging, etag))

        def write() -> None:
            for partition, deaths, etag in left:
                with contextlib.suppress(Conflict, StorageFault):
                    self._store.put_if(record_key(partition), _data(deaths), etag)

        return write

    def deaths(self, partition: Partition, offset: int) -> int:
        """In how many deaths this event was in flight."""
        return self._deaths.get(partition, {}).get(offset, 0)

    def begin(self, partition: Partition, offsets: Iterable[int]) -> None:
        """Write down that these are about to be drawn, beside those that are.

        Raises:
            StorageFault: not written; begin again.
        """
        with self._lock:
            now = time.monotonic()
            self._drawing.setdefault(partition, {}).update(dict.fromkeys(offsets, now))
        self._write(partition)

    def drawing(self) -> int:
        """How many events would be counted if this process died now."""
        with self._lock:
            return sum(map(len, self._drawing.values()))

    def rest(self, partition: Partition, offset: int) -> None:
        """The event is not drawn for now; it will begin again."""
        with self._lock:
            self._drawing.get(partition, {}).pop(offset, None)

    def end(self, partition: Partition, offset: int) -> None:
        """The event is finished. Written with the next `begin`: a committed offset is never asked for again."""
        with self._lock:
            self._drawing.get(partition, {}).pop(offset, None)
            self._deaths.get(partition, {}).pop(offset, None)

    def clear(self) -> None:
        """A clean end: what is still in flight did not kill anybody.

        Raises:
            StorageFault: not written; those events count a death too many.
        """
        with self._lock:
            for drawing in self._drawing.values():
                drawing.clear()
            partitions = list(self._drawing)
        for partition in partitions:
            self._write(partition)

    def _write(self, partition: Partition) -> None:
        for _ in range(5):
            with self._lock:
                if partition not in self._deaths:
                    return  # it was taken away meanwhile
                deaths, etag = self._deaths[partition], self._etags[partition]
                # What is written counts the death that would have to happen for anybody to read it.
                record = deaths | {offset: deaths.get(offset, 0) + 1 for offset in self._drawing[partition]}
            try:
                etag = self._store.put_if(record_key(partition), _data(record), etag)
                written = True
            except Conflict:
                # Its last owner was not quite done. Ours is the truth from here on.
                stored = self._store.get(record_key(partition))
                etag, written = (stored.etag if stored else None), False
            with self._lock:
                if partition in self._etags:
                    self._etags[partition] = etag
            if written:
                return


def _data(record: Mapping[int, int]) -> bytes:
    return json.dumps({str(offset): count for offset, count in sorted(record.items())}).encode()


def parse(data: bytes) -> dict[int, int]:
    """Offset to deaths; a record that cannot be read says nothing."""
    try:
        return {int(offset): int(count) for offset, count in json.loads(data).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
