"""The released preference head, for policies that look at tastes."""

from __future__ import annotations

import logging

from icg.exceptions import BadWeights
from icg.preference import Head
from workers.exceptions import BadPart, Fault
from workers.policies import PERSONAL
from workers.polling import Poller
from workers.releases import Releases
from workers.settings import Api

log = logging.getLogger(__name__)

POLL_SECONDS = 10.0
"""A few hundred bytes of S3 each time. A head is 16 kB and is fetched once."""


def personal(api: Api) -> bool:
    """Whether any request may fall under a policy that asks for tastes."""
    return bool(PERSONAL & {api.policy, *api.surfaces.values(), *api.split})


class HeadWatcher(Poller):
    """Looks for a new release every 10 seconds and keeps the last good head.

    By S3 and not by `model-updates`: the api then runs without Kafka.
    """

    def __init__(self, releases: Releases, seconds: float = POLL_SECONDS) -> None:
        self.head: Head | None = None
        self._releases = releases
        self._seen: str | None = None
        super().__init__("heads", self.poll, seconds)

    def poll(self) -> bool:
        """Look once. False where S3 is away or the head is refused: the last one holds."""
        try:
            release = self._releases.current()
            revision = release.parts.get("preference") if release else None
            if release is None or revision is None or revision == self._seen:
                return True
            head = Head.load(self._releases.fetch("preference", revision))
            if head.space != release.parts.get("space", head.space):
                raise BadPart("it is of another space than the release")
        except (BadPart, BadWeights) as error:
            log.error("the preference head is refused, the last one holds: %s", error)
            return False
        except Fault as fault:
            log.warning("the release cannot be read, the last preference head holds: %s", fault)
            return False
        self.head, self._seen = head, revision
        log.info("preference head %s of release %d", revision[:12], release.number)
        return True
