"""Which items there are, the newest first, and how often each was seen of late."""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pyarrow.dataset as ds

from workers.events import BehaviorKind, UserBehavior
from workers.records import Manifest
from workers.settings import S3
from workers.storage import ObjectStore
from workers.tables import faults, open_table

log = logging.getLogger(__name__)

SEEN_DAYS = 7


def manifests(store: ObjectStore) -> list[Manifest]:
    """All items that are ready, the newest first. Reads every manifest: for a job that runs once in a while."""

    def one(key: str) -> Manifest | None:
        stored = store.get(key)
        return Manifest.decode(stored.data) if stored is not None else None

    with ThreadPoolExecutor(16) as threads:
        found = [each for each in threads.map(one, store.list("manifests/")) if each is not None]
    ready = [each for each in found if each.state == "ready"]
    return sorted(ready, key=lambda each: each.time, reverse=True)


def seen(s3: S3, now: datetime) -> Counter[str]:
    """Impressions by item in the last days, from the audit table; none where nothing is audited.

    Raises:
        StorageFault: S3 does not answer.
    """
    table = open_table(s3, UserBehavior.topic)
    if table is None:
        return Counter()
    since = now.astimezone(UTC) - timedelta(days=SEEN_DAYS)
    where = (ds.field("day") >= since.date()) & (ds.field("kind") == BehaviorKind.IMPRESSION.value)
    with faults("count impressions"):
        column = table.to_pyarrow_dataset().to_table(["item_id"], filter=where)["item_id"]
    return Counter({each["values"]: each["counts"] for each in column.value_counts().to_pylist()})
