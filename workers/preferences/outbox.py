"""Messages on their way: a checkpoint may say "done" only once the broker has them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Slow
from functools import partial

from workers.exceptions import Fault, MessageTooLarge, MessagingFault
from workers.storage import retrying

log = logging.getLogger(__name__)

Delivery = Future[tuple[int, int]]


class Outbox:
    """Sends, remembers until delivered, sends again what failed. For one thread."""

    def __init__(self, stop: threading.Event, on_retry: Callable[[Fault], None] | None = None) -> None:
        self._stop, self._on_retry = stop, on_retry
        self._sent: deque[tuple[Callable[[], Delivery], Delivery]] = deque()

    def send(self, call: Callable[[], Delivery]) -> None:
        """Send by a call that may be repeated: readers drop what they have seen."""
        self._sent.append((call, self._try(call)))
        while self._sent and self._sent[0][1].done() and self._sent[0][1].exception() is None:
            self._sent.popleft()

    def _try(self, call: Callable[[], Delivery]) -> Delivery:
        try:
            return retrying(call, what="send", stop=self._stop, on_retry=self._on_retry)
        except MessageTooLarge as error:
            refused: Delivery = Future()
            refused.set_exception(error)
            return refused

    def settle(self) -> None:
        """Return once everything is delivered.

        Raises:
            Stopped: told to stop while it is not.
        """
        while self._sent:
            call, delivery = self._sent[0]
            try:
                retrying(partial(_result, delivery), what="delivery", stop=self._stop, on_retry=self._on_retry)
            except _Failed as failed:
                if isinstance(failed.__cause__, MessageTooLarge):
                    log.error("a message is lost for good: %s", failed.__cause__)
                else:
                    self._sent[0] = (call, self._try(call))
                    continue
            self._sent.popleft()


class _Failed(Exception):
    """The delivery ended, without success."""


def _result(delivery: Delivery) -> None:
    try:
        delivery.result(5.0)
    except Slow:
        raise MessagingFault("the broker has not acknowledged for 5 s") from None
    except (MessagingFault, MessageTooLarge) as error:
        raise _Failed from error
