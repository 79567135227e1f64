"""The items in the store, for people who look at them: manifests by page, read again only where they changed.

A page costs one listing, whose ETags say which manifests are new; the others are remembered.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from pydantic import ValidationError

from workers.records import RELEASE_KEY, Manifest, Release
from workers.storage import ObjectStore

log = logging.getLogger(__name__)

PREFIX = "manifests/"
MOST_KEPT = 2000
READERS = 8


@dataclass(frozen=True, slots=True)
class Page:
    manifests: list[Manifest]
    following: str | None
    """Item id after which the next page begins, None at the end."""


class Manifests:
    """Blocking; thread-safe as far as a lost race only costs another read."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._kept: OrderedDict[str, tuple[str, Manifest]] = OrderedDict()
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="manifests")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def page(self, after: str | None, limit: int) -> Page:
        """Manifests in the order of item ids, retracted ones left out."""
        start = f"{PREFIX}{after}.json" if after else ""
        listed = list(islice(self._store.listing(PREFIX, after=start), limit + 1))
        shown = listed[:limit]
        read = self._threads.map(lambda entry: self._manifest(entry.key, entry.etag), shown)
        manifests = [manifest for manifest in read if manifest is not None and manifest.state == "ready"]
        following = item_of(shown[-1].key) if len(listed) > limit else None
        return Page(manifests, following)

    def release(self) -> int | None:
        """The number of the current release."""
        stored = self._store.get(RELEASE_KEY)
        if stored is None:
            return None
        try:
            return Release.decode(stored.data).number
        except ValidationError as error:
            log.error("%s is not a release: %s", RELEASE_KEY, error)
            return None

    def _manifest(self, key: str, etag: str) -> Manifest | None:
        kept = self._kept.get(key)
        if kept is not None and kept[0] == etag:
            return kept[1]
        stored = self._store.get(key)
        if stored is None:
            return None
        try:
            manifest = Manifest.decode(stored.data)
        except ValidationError as error:
            log.error("%s is not a manifest: %s", key, error)
            return None
        self._kept[key] = (stored.etag, manifest)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return manifest


def item_of(key: str) -> str:
    return key.removeprefix(PREFIX).removesuffix(".json")
