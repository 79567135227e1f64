"""Tastes and histories to Feast, off the hot path: one thread, one row a person however often they changed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from prometheus_client import Counter, Histogram

from workers.exceptions import Fault, Stopped
from workers.features import Features
from workers.storage import retrying

log = logging.getLogger(__name__)

ROWS = 2_000
"""Rows a push: a tenth of a second at Feast's SQLite, so that readers are not locked out for long."""
PUSHED = Counter("icg_preferences_pushed_rows", "Rows pushed to Feast.", ["view"])
LAG = Histogram(
    "icg_preferences_push_lag_seconds",
    "From the change of a row to its push.",
    buckets=(0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 300),
)

Row = Mapping[str, Any]


class Pusher:
    """Pushes what it is offered, the newest row of each person, at most every `seconds`."""

    def __init__(
        self,
        features: Features,
        seconds: float,
        on_fault: Callable[[Fault], None] | None = None,
    ) -> None:
        self._features, self._seconds = features, seconds
        self._on_fault = on_fault
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str], tuple[float, Row]] = {}
        self._flying: dict[tuple[str, str], tuple[float, Row]] = {}
        self._stop, self._hurry = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)
        self.failed: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def offer(self, view: str, rows: Mapping[str, Row]) -> None:
        """Rows by user_id. The wait of a row that is replaced goes on."""
        now = time.monotonic()
        with self._lock:
            for user, row in rows.items():
                since = self._rows.get((view, user), (now, row))[0]
                self._rows[view, user] = (since, row)

    def waiting(self, view: str) -> set[str]:
        """Who is not in Feast yet: a checkpoint writes them down."""
        with self._lock:
            return {user for name, user in (*self._rows, *self._flying) if name == view}

    def settle(self, seconds: float) -> None:
        """Push all that was offered now, and wait for it at most so long."""
        until = time.monotonic() + seconds
        while (self._rows or self._flying) and self._thread.is_alive() and time.monotonic() < until:
            self._hurry.set()
            time.sleep(0.01)

    def drop(self, users: Collection[str]) -> None:
        """Push no more of people who were erased or are somebody else's now: in an outage of Feast that would be hours
        later, over what their new owner has learned since. The attempt under way may still arrive."""
        with self._lock:
            for rows in (self._rows, self._flying):
                for key in [key for key in rows if key[1] in users]:
                    del rows[key]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._hurry.wait(self._seconds)
                self._hurry.clear()
                self._push_all()
            self._push_all()
        except Stopped:
            log.warning("%d rows are not in Feast; the checkpoint names them", len(self._rows) + len(self._flying))
        except BaseException as error:
            self.failed = error
            log.exception("the push thread ends")

    def _push_all(self) -> None:
        while True:
            with self._lock:
                self._flying = {key: self._rows.pop(key) for key in list(self._rows)[:ROWS]}
                views = dict.fromkeys(view for view, _ in self._flying)
            if not views:
                return
            for view in views:
                retrying(partial(self._push, view), what=f"push {view}", stop=self._stop, on_retry=self._on_fault)
            now = time.monotonic()
            with self._lock:
                pushed, self._flying = self._flying, {}
            for since, _ in pushed.values():
                LAG.observe(now - since)

    def _push(self, view: str) -> None:
        with self._lock:  # at each attempt anew: some may have been dropped
            rows = [{"user_id": user, **row} for (name, user), (_, row) in self._flying.items() if name == view]
        self._features.push(view, rows)
        PUSHED.labels(view).inc(len(rows))

    def close(self, timeout: float = 5.0) -> None:
        """Push what is left, once; what fails then stays in `waiting`."""
        self._stop.set()
        self._hurry.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
