"""People who asked to be forgotten: their events are dropped until Kafka's own log cannot hold any of them.

An id is kept only as a hash, and only for so long. What decides is the time of the event that names the person, so late
events and replays bring nobody back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workers.preferences.decode import Columns, keys_of


@dataclass(slots=True)
class Erased:
    """Hashes of ids, and the event time in µs up to which their events are dropped."""

    until: dict[bytes, int] = field(default_factory=dict)

    def add(self, user: str, until: int) -> None:
        key = keys_of([user]).tobytes()
        self.until[key] = max(until, self.until.get(key, until))

    def keep(self, batch: Columns) -> NDArray[np.bool_] | None:
        """Which events are not of such people; None: all of them."""
        if not self.until:
            return None
        keys = keys_of(batch.user)
        first = np.fromiter((int.from_bytes(key[:8], "little") for key in self.until), np.uint64, len(self.until))
        kept = np.ones(len(batch), bool)
        for row in np.flatnonzero(np.isin(keys[:, 0], first)).tolist():
            kept[row] = batch.time[row] > self.until.get(keys[row].tobytes(), -(2**62))
        return None if kept.all() else kept

    def expire(self, watermark: int) -> None:
        """Forget those whose time has come: the window calls their late events late."""
        self.until = {key: until for key, until in self.until.items() if until >= watermark}
