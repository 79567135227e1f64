"""Readiness of the servers behind a service: asked again and again, since who has no work notices no outage."""

from __future__ import annotations

import time
from collections.abc import Callable

from workers.exceptions import Fault, FeatureFault, MessagingFault, StorageFault
from workers.health import Health
from workers.polling import Poller

ASK_SECONDS = 2.0
WAITING_SECONDS = 12.0
"""`retrying` tries again after 10 s at most: whoever still waits has failed once more by then."""

_CONDITIONS: dict[type[Fault], str] = {MessagingFault: "kafka", StorageFault: "s3", FeatureFault: "feast"}


class Reachable(Poller):
    """Sets the conditions `kafka`, `s3` and `feast`, by what each answers and by what fails.

    A server may answer while work on it still fails (a locked SQLite file can be read): a condition holds once the
    server answers and nothing has failed for `WAITING_SECONDS`.
    """

    def __init__(self, health: Health, seconds: float = ASK_SECONDS) -> None:
        self.asks: dict[str, Callable[[], bool]] = {}
        """Condition to a question of a few seconds at most, such as `ObjectStore.ping`; to be filled before `start`."""
        self._health = health
        self._failed: dict[str, float] = {}
        super().__init__("reachable", self._ask, seconds)

    def fault(self, fault: Fault) -> None:
        """Work waits for a server: neither ready nor stuck. For `retrying(on_retry=…)`; from any thread."""
        condition = _CONDITIONS.get(type(fault), "s3")
        self._failed[condition] = time.monotonic()
        self._health.set(condition, False, str(fault)[:200])
        self._health.progress()

    def _ask(self) -> None:
        for condition, ask in self.asks.items():
            if not ask():
                self._health.set(condition, False, "no answer")
            elif time.monotonic() - self._failed.get(condition, -WAITING_SECONDS) >= WAITING_SECONDS:
                self._health.set(condition, True)
