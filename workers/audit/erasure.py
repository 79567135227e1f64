"""Forgetting people in the audit tables."""

from __future__ import annotations

from workers.audit.delta import AuditTable
from workers.audit.layouts import LAYOUTS
from workers.audit.pseudonyms import Pseudonyms
from workers.forgetting import Forget
from workers.settings import Settings


def forgetter(settings: Settings) -> Forget:
    """Deletes a person's rows from every table that has a `user_key`, for one thread.

    Tables without one name nobody: `unreadable` and `dead_letters` hold reasons with the id cut out, and of a dead
    letter about a person the key stands in `user_key`.
    """
    people = Pseudonyms(settings.audit.user_key.get_secret_value())
    tables = [AuditTable(layout, settings.s3) for layout in LAYOUTS if "user_key" in layout.schema.names]

    def forget(user_id: str) -> dict[str, int]:
        key = people.key(user_id)
        return {f"audit/{table.layout.topic}": table.erase(key) for table in tables}

    return forget
