"""Who asked to be forgotten: kept as hashes until Kafka's own log cannot hold any event of theirs.

One record in S3, `erasure/erased.json`, changed by compare-and-swap and read by every service that writes down what
people do. It names nobody: an entry is an HMAC of the user's key in the audit tables, which is an HMAC of the id; both
are under the secret `ICG_AUDIT_USER_KEY`, and the user's key itself stands nowhere any more.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, Field, ValidationError

from workers.exceptions import StorageFault
from workers.polling import Poller
from workers.records import Record

if TYPE_CHECKING:
    from workers.settings import Settings
    from workers.storage import ObjectStore

log = logging.getLogger(__name__)

KEY = "erasure/erased.json"
POLL_SECONDS = 3.0


def user_key(secret: str, user_id: str) -> str:
    """A user in the audit tables: HMAC-SHA256 of the id, 64 hex digits."""
    return hmac.digest(secret.encode(), user_id.encode(), "sha256").hex()


def mark(secret: str, key: str) -> str:
    """An erased user in the record, from their user_key."""
    return hmac.digest(secret.encode(), b"erased\n" + key.encode(), "sha256").hex()[:32]


class ErasedUsers(Record):
    """`erasure/erased.json`."""

    until: dict[str, AwareDatetime] = Field(default_factory=dict)


class Erased(Poller):
    """The record, as one process knows it. Thread-safe; a reader polls it every few seconds (`start`).

    Args:
        settings: `audit.user_key`, and for how long events are dropped (`erasure.retention_days`).
    """

    def __init__(self, settings: Settings, store: ObjectStore, seconds: float = POLL_SECONDS) -> None:
        self._secret = settings.audit.user_key.get_secret_value()
        self._days = settings.erasure.retention_days
        self._store = store
        self._marks: frozenset[str] = frozenset()
        super().__init__("erased", self._look, seconds)

    def __bool__(self) -> bool:
        return bool(self._marks)

    @property
    def marks(self) -> frozenset[str]:
        """Whom it holds; equal until that changes."""
        return self._marks

    def has_key(self, key: str) -> bool:
        """By user_key."""
        return bool(self._marks) and mark(self._secret, key) in self._marks

    def has(self, user_id: str) -> bool:
        return bool(self._marks) and self.has_key(user_key(self._secret, user_id))

    def without(self, user_ids: Iterable[str]) -> list[str]:
        return [user_id for user_id in user_ids if not self.has(user_id)]

    def add(self, user_id: str) -> None:
        """Put a user in, from now on for `retention_days`; entries whose time is over go.

        Raises:
            StorageFault: S3 does not answer.
        """
        now = datetime.now(UTC)
        entry = mark(self._secret, user_key(self._secret, user_id))

        def change(data: bytes | None) -> bytes:
            before = ErasedUsers.decode(data).until if data is not None else {}
            kept = {name: until for name, until in before.items() if until > now}
            return ErasedUsers(until={**kept, entry: now + timedelta(days=self._days)}).encode()

        data = self._store.update(KEY, change)
        self._marks = frozenset(ErasedUsers.decode(data).until) if data is not None else frozenset()

    def poll(self) -> None:
        """Read the record.

        Raises:
            StorageFault: S3 does not answer; who was known stays known.
        """
        stored = self._store.get(KEY)
        now = datetime.now(UTC)
        until = ErasedUsers.decode(stored.data).until if stored is not None else {}
        self._marks = frozenset(name for name, end in until.items() if end > now)

    def _look(self) -> None:
        try:
            self.poll()
        except (StorageFault, ValidationError) as error:
            log.warning("who was erased cannot be read, those known stay erased: %s", error)
