"""A thread that reads something small again and again, such as a record in S3 that others change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Poller:
    """Calls at once and then every few seconds, whatever comes of it: one that died would go unnoticed.

    Args:
        name: of the thread.
        poll: one look; what it raises is logged.
        seconds: between two looks.
    """

    def __init__(self, name: str, poll: Callable[[], object], seconds: float) -> None:
        self._poll, self._seconds = poll, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Wait for the look that goes on, 5 s at most."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        while True:
            try:
                self._poll()
            except Exception:
                log.exception("%s: a look failed, the next is in %g s", self._thread.name, self._seconds)
            if self._stop.wait(self._seconds):
                return
