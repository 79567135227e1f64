"""The learner's part in forgetting people: its receipt is written once no partition's checkpoints name the person.

Whoever owns a partition finds erased people by the record that all services follow (`workers.erased`), forgets them,
and says so in S3. The trainer is told through `preference-pairs`, before that.
"""

from __future__ import annotations

import threading

from workers.erased import mark, user_key
from workers.exceptions import Stopped
from workers.forgetting import Forget
from workers.preferences.checkpoint import Checkpoints
from workers.settings import Settings

LOOK = 1.0
"""Seconds between two looks at what the partitions' owners have said."""


def forgetter(settings: Settings, checkpoints: Checkpoints, stop: threading.Event) -> Forget:
    """Removes nothing itself: waits for all partitions, for as long as that takes."""
    secret = settings.audit.user_key.get_secret_value()

    def forget(user_id: str) -> dict[str, int]:
        theirs = mark(secret, user_key(secret, user_id))
        while not checkpoints.without(theirs):
            if stop.wait(LOOK):
                raise Stopped("the learner ends before a person is forgotten")
        return {}

    return forget
