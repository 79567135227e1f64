"""What Feast says of an item follows its manifest, even when a worker is late."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from workers.covers.commit import feast_row
from workers.covers.patience import Patience
from workers.covers.rows import Rows
from workers.events import Outcome, Source
from workers.features import Features
from workers.health import Health
from workers.records import Manifest, manifest_key
from workers.settings import Feast
from workers.storage import ObjectStore


def manifest(version: int) -> Manifest:
    source = Source(topic="item-publish", partition=0, offset=version)
    return Manifest(
        item_id="late",
        item_version=version,
        state="ready",
        generation=version,
        release=1,
        published_by=source,
        source=source,
        outcome=Outcome.DRAWN,
    )


def test_a_worker_that_is_late_does_not_put_an_old_row_over_a_newer_one(store: ObjectStore, feast_repo: Feast) -> None:
    async def both() -> None:
        with ThreadPoolExecutor(2) as pool:
            patience = Patience(pool, Health(0))

            async def row(which: Manifest) -> dict[str, Any]:
                return feast_row(which, "default", {})

            rows = Rows(store, features, patience, row)
            running = asyncio.create_task(rows.run())
            await rows.follow(manifest(2))
            # It was stopped after its manifest, the first; another one has committed and pushed since.
            await rows.follow(manifest(1))
            running.cancel()

    features = Features(feast_repo)
    store.put_if(manifest_key("late"), manifest(2).encode(), None)
    asyncio.run(both())
    found = features.read(["item_covers:generation", "item_covers:item_version"], [{"item_id": "late"}])
    features.close()
    assert found == [{"item_id": "late", "generation": 2, "item_version": 2}]
