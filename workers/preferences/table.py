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
        self._mask = size - 1
        # Key, key, row + 1 (0: free) side by side: a probe touches one line of memory, not two.
        self._cells = np.zeros((size, 3), np.uint64)
        self._used = 0

    def crowded(self, more: int) -> bool:
        """Whether `more` further keys would fill over half of the slots."""
        return 2 * (self._used + more) > len(self._cells)

    def rebuild(self, keys: Keys, rows: Rows, room: int) -> None:
        """Start again with these, and room for so many in all. Memory once taken is kept for the next time."""
        room = max(room, len(rows))
        if 2 * room > len(self._cells):
            self._allocate(room)
        else:
            self._cells[:] = 0
            self._used = 0
        self.put(keys, rows)

    def get(self, keys: Keys) -> Rows:
        """The row of each key, -1 where it is not in."""
        return self.find(keys)[0]

    def find(self, keys: Keys) -> tuple[Rows, NDArray[np.intp]]:
        """The same, and where each key is or would go: `put` takes that, if nothing was put in between."""
        slots = self._slots(keys)
        return self._cells[slots, 2].astype(np.int64) - 1, slots

    def put(self, keys: Keys, rows: Rows, slots: NDArray[np.intp] | None = None) -> None:
        """Set the rows of distinct keys, whether in already or not.

        Args:
            slots: of these keys, from `find`.

        Raises:
            ValueError: they would fill more than half of it: ask `crowded` first.
        """
        if self.crowded(len(rows)):
            raise ValueError(f"{len(rows)} keys more than {self._used} of {len(self._cells)} slots: rebuild first")
        cells = np.concatenate([keys, (rows + 1).astype(np.uint64)[:, None]], axis=1)
        while len(cells):
            if slots is None:
                slots = self._slots(cells)
            self._used += int(np.count_nonzero(self._cells[slots, 2] == 0))
            self._cells[slots] = cells
            lost = self._cells[slots, 2] != cells[:, 2]  # two new keys found the same free slot: the later one has it
            if not lost.any():
                return
            self._used -= int(np.count_nonzero(lost))
            cells, slots = cells[lost], None

    def _slots(self, keys: Keys) -> NDArray[np.intp]:
        """Where each key is, or the free slot where it would go."""
        slots = (keys[:, 0] & np.uint64(self._mask)).astype(np.intp)
        todo = np.flatnonzero(~self._settled(slots, keys))
        while len(todo):
            slots[todo] = (slots[todo] + 1) & self._mask
            todo = todo[~self._settled(slots[todo], keys[todo])]
        return slots

    def _settled(self, slots: NDArray[np.intp], keys: Keys) -> NDArray[np.bool_]:
        found = self._cells.take(slots, axis=0)
        settled: NDArray[np.bool_] = (found[:, 2] == 0) | ((found[:, 0] == keys[:, 0]) & (found[:, 1] == keys[:, 1]))
        return settled
