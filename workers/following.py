"""Whoever uses trained parts is told of each new release."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from workers.events import BadEvent, ModelUpdate
from workers.exceptions import BadPart, Fault, MessagingFault
from workers.messaging import Follower
from workers.records import Release
from workers.releases import Releases
from workers.settings import Kafka

log = logging.getLogger(__name__)


class ReleaseFollower:
    """Tells of each new release, in a thread of its own: by `model-updates` at once, by a look every 30 s in any case.

    A broker or store that is away is waited for. Numbers only grow: what is not above the last told is ignored.
    """

    def __init__(
        self,
        settings: Kafka,
        releases: Releases,
        callback: Callable[[Release], None],
        *,
        look_seconds: float = 30.0,
    ) -> None:
        """
        Args:
            callback: called in this follower's thread. A `Fault` from it is tried again a second later; any other
                exception is logged, and that release is not told again.
        """
        self._settings, self._releases, self._callback = settings, releases, callback
        self._look_seconds = look_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="releases", daemon=True)
        self.number = 0
        """Of the last release told; 0 before the first."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; waits for a callback that is running, 10 s at most."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        follower: Follower | None = None
        next_look = 0.0
        while not self._stop.is_set():
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + (self._look_seconds if self._look() else 1.0)
            try:
                if follower is None:
                    follower = Follower(self._settings, ModelUpdate.topic, start="latest", timeout=3.0)
                    next_look = 0.0  # what was announced while we did not listen
                    continue
                if any(self._is_news(message.value) for message in follower.poll(100, 0.5)):
                    next_look = 0.0
            except MessagingFault as fault:
                log.warning("model-updates: %s", fault)
                if follower is not None:
                    follower.close()
                    follower = None
                self._stop.wait(1.0)
        if follower is not None:
            follower.close()

    def _is_news(self, value: bytes | None) -> bool:
        try:
            return ModelUpdate.decode(value).number > self.number
        except BadEvent as error:
            log.warning("model-updates: %s", error)
            return False

    def _look(self) -> bool:
        """Read the truth and tell of it if it is new. False: try again soon."""
        try:
            release = self._releases.current()
        except Fault as fault:
            log.warning("release: %s", fault)
            return False
        except BadPart as error:
            log.error("release: %s", error)
            return True
        if release is None or release.number <= self.number:
            return True
        try:
            self._callback(release)
        except Fault as fault:
            log.warning("release %d: %s", release.number, fault)
            return False
        except BadPart as error:
            log.error("release %d is refused: %s", release.number, error)
        except Exception:
            log.exception("release %d could not be taken over", release.number)
        self.number = release.number
        return True
