"""The row of `item_covers` in Feast follows the manifest.

Feast has no compare-and-swap, and a later push wins whatever it says: a worker that stood still between manifest and
push would put an old row over a newer worker's. So whoever pushes looks afterwards whether it was still the newest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from workers.covers.patience import Patience
from workers.features import Features
from workers.records import Manifest, manifest_key
from workers.storage import ObjectStore

MakeRow = Callable[[Manifest], Awaitable[dict[str, Any]]]


class Rows:
    """Pushes rows, all that have gathered in one call. Lives on one event loop, where `run` is a task."""

    def __init__(self, store: ObjectStore, features: Features, patience: Patience, make: MakeRow) -> None:
        """
        Args:
            make: a manifest's row.
        """
        self._store = store
        self._features = features
        self._patience = patience
        self._make = make
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self._there = asyncio.Event()

    async def follow(self, manifest: Manifest) -> None:
        """Return when Feast has the row of this manifest, or of a newer one if there is one by then."""
        key = manifest_key(manifest.item_id)
        while True:
            await self._push(await self._make(manifest))
            stored = await self._patience("s3", "read the manifest again", self._store.get, key)
            newest = Manifest.decode(stored.data) if stored else manifest
            if newest.generation <= manifest.generation:
                return
            manifest = newest

    async def _push(self, row: dict[str, Any]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, done))
        self._there.set()
        await done

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._there.wait()
            self._there.clear()
            taken, self._waiting = self._waiting, []
            rows = [row for row, _ in taken]
            await self._patience("feast", "write item_covers", self._features.push, "item_covers", rows)
            for _, done in taken:
                if not done.done():
                    done.set_result(None)
