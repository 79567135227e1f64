"""Who looks on meanwhile: at all manifests in S3, and at what the api answers."""

from __future__ import annotations

import threading
from abc import abstractmethod

import httpx

from tests.faults.checker import Answer
from workers.exceptions import Fault
from workers.records import Manifest
from workers.settings import S3
from workers.storage import ObjectStore

PAGE = 100


class Watcher:
    """Looks again and again, in a thread of its own, until closed."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._pause):
            try:
                self.look()
            except (Fault, httpx.HTTPError):  # what it looks at is what is away
                continue

    @abstractmethod
    def look(self) -> None: ...

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)


class Manifests(Watcher):
    """Keeps each manifest that is new, in the order in which it saw them."""

    def __init__(self, store: S3) -> None:
        self.seen: dict[str, list[Manifest]] = {}
        self._store = ObjectStore(store, timeout=2.0, attempts=1)
        self._etags: dict[str, str] = {}
        super().__init__(0.1)

    def look(self) -> None:
        for each in list(self._store.listing("manifests/")):
            if self._etags.get(each.key) == each.etag:
                continue
            stored = self._store.get(each.key)
            if stored is not None and stored.etag != self._etags.get(each.key):
                self._etags[each.key] = stored.etag
                manifest = Manifest.decode(stored.data)
                self.seen.setdefault(manifest.item_id, []).append(manifest)


class Answers(Watcher):
    """Asks the api for a page of the newest items, and keeps each answer that is another one than before."""

    def __init__(self, address: str) -> None:
        self.seen: dict[str, list[Answer]] = {}
        self.asked: list[str] = []
        """Item ids, the newest last; whoever publishes appends."""
        self.pages = 0
        self._client = httpx.Client(base_url=address, timeout=5)
        super().__init__(0.2)

    def look(self) -> None:
        wanted = self.asked[-PAGE:]
        if not wanted:
            return
        page = self._client.post("/v1/covers:batchGet", json={"item_ids": wanted})
        if page.status_code != 200:
            return
        self.pages += 1
        for entry in page.json()["covers"]:
            status = entry.get("problem", {}).get("status", 200)
            if status == 503:
                continue
            answer = Answer(status, entry.get("item_version", 0), entry.get("generation", 0))
            seen = self.seen.setdefault(entry["item_id"], [])
            if not seen or seen[-1] != answer:
                seen.append(answer)

    def close(self) -> None:
        super().close()
        self._client.close()
