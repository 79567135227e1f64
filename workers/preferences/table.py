"""A hash table from 128-bit keys to row numbers, every operation on whole batches.

Open addressing with linear probing over three flat arrays. At most half full, a batch needs 1.5 probes an entry on
average, so a lookup is two or three rounds of numpy gathers. There is no delete: whoever owns the rows knows which are
dead, and calls `rebuild` with the living ones when `crowded`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]  # [n, 2]
Rows = NDArray[np.int64]  # [n]


class Table:
    """Keys to rows. A row is a number >= 0 that no other key has."""

    def __init__(self, room: int = 1024) -> None:
        self._allocate(room)

    def _allocate(self, room: int) -> None:
        size = 1 << max(10, (2 * room - 1).bit_length())
        self._mask = np.uint64(size - 1)
        self._keys = np.zeros((size, 2), np.uint64)
        self._rows = np.full(size, -1, np.int64)
        self._used = 0

    def crowded(self, more: int) -> bool:
        """Whether `more` further keys would fill over half of the slots."""
        return 2 * (self._used + more) > len(self._rows)

    def rebuild(self, keys: Keys, rows: Rows, room: int) -> None:
        """Start again with these, and room for so many in all."""
        self._allocate(max(room, len(rows)))
        self.put(keys, rows)

    def get(self, keys: Keys) -> Rows:
        """The row of each key, -1 where it is not in."""
        return self._rows[self._slots(keys)]

    def find(self, keys: Keys) -> tuple[Rows, NDArray[np.intp]]:
        """The same, and where each key is or would go: `put` takes that, if nothing was put in between."""
        slots = self._slots(keys)
        return self._rows[slots], slots

    def put(self, keys: Keys, rows: Rows, slots: NDArray[np.intp] | None = None) -> None:
        """Set the rows of distinct keys, whether in already or not.

        Args:
            slots: of these keys, from `find`.

        Raises:
            ValueError: they would fill more than half of it: ask `crowded` first.
        """
        if self.crowded(len(rows)):
            raise ValueError(f"{len(rows)} keys more than {self._used} of {len(self._rows)} slots: rebuild first")
        while len(rows):
            if slots is None:
                slots = self._slots(keys)
            fresh = self._rows[slots] < 0
            self._rows[slots] = rows
            won = self._rows[slots] == rows  # two new keys may have found the same free slot: the later one has it
            self._keys[slots[won]] = keys[won]
            self._used += int(np.count_nonzero(fresh & won))
            if won.all():
                return
            keys, rows, slots = keys[~won], rows[~won], None

    def _slots(self, keys: Keys) -> NDArray[np.intp]:
        """Where each key is, or the free slot where it would go."""
        slots = (keys[:, 0] & self._mask).astype(np.intp)
        todo = np.flatnonzero(~self._settled(slots, keys))
        while len(todo):
            slots[todo] = (slots[todo] + 1) & int(self._mask)
            todo = todo[~self._settled(slots[todo], keys[todo])]
        return slots

    def _settled(self, slots: NDArray[np.intp], keys: Keys) -> NDArray[np.bool_]:
        found = self._keys[slots]
        settled: NDArray[np.bool_] = (self._rows[slots] < 0) | (
            (found[:, 0] == keys[:, 0]) & (found[:, 1] == keys[:, 1])
        )
        return settled
