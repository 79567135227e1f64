"""The covers' preference embeddings for the row in Feast: from memory if drawn just now, else from their sidecars.

The manifest names covers and not their embeddings, and a replay after a crash has nothing but the manifest.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from workers.covers.plan import Embedding
from workers.records import Manifest, Sidecar, sidecar_key
from workers.storage import ObjectStore

REMEMBERED = 20_000
"""Covers, about 10 MB: those between their drawing and their row, and those of items that are refreshed soon."""


class Embeddings:
    """Thread-safe."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: OrderedDict[str, Embedding] = OrderedDict()
        self._lock = threading.Lock()

    def learn(self, sidecar: Sidecar) -> None:
        with self._lock:
            vector = np.array(sidecar.embedding, np.float16)  # as the row has it; floats are ten times as large
            self._known[sidecar.cover_id] = Embedding(vector, sys.intern(sidecar.space), sidecar.release)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)

    def of(self, manifest: Manifest, rendition_id: str) -> dict[str, Embedding]:
        """By cover_id, of all covers in the manifest. Blocks for a read of each one that is not in memory.

        Raises:
            StorageFault: S3 does not answer.
        """
        return dict(
            self._each(
                manifest.item_id, {by[rendition_id].cover_id for by in manifest.covers.values() if rendition_id in by}
            )
        )

    def _each(self, item_id: str, cover_ids: Iterable[str]) -> Iterable[tuple[str, Embedding]]:
        for cover_id in cover_ids:
            if cover_id not in self._known and (stored := self._store.get(sidecar_key(item_id, cover_id))) is not None:
                self.learn(Sidecar.decode(stored.data))
            if (known := self._known.get(cover_id)) is not None:
                yield cover_id, known
