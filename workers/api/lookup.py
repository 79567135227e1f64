"""What the api knows of readers and items: Feast first, the manifest in S3 where Feast has no row.

One Feast call for the user and all items of a request, and of all requests that wait with it. Items are kept for a
second, so that those on everybody's page are read once a second and not once a page; and what S3 said of items that
Feast does not have for two, because clients that ask for unknown items could drive that path otherwise. Of people
nothing is kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import ValidationError

from workers import tracing
from workers.api import metrics, problems
from workers.api.batching import Batcher
from workers.api.problems import Problem
from workers.decisions import Offer, Reader
from workers.exceptions import FeatureFault, StorageFault
from workers.features import Features
from workers.policies import Person
from workers.records import Manifest, manifest_key
from workers.storage import ObjectStore

log = logging.getLogger(__name__)

T = TypeVar("T")
_Key = tuple[str, str]
"""("user_id" or "item_id", the id)."""

_ITEM = "item_version state generation release reference_image segment_ids cover_ids fallbacks width height"
ITEM_COLUMNS = [f"item_covers:{column}" for column in _ITEM.split()]
"""All but the scores, which no choice looks at."""
EMBEDDING_COLUMNS = ["item_covers:embeddings", "item_covers:space"]
"""For policies that look at the covers themselves."""
SCORE_COLUMNS = ["item_covers:generation", "item_covers:scores"]
USER_COLUMNS = ["user_segment:segment_id", "user_segment:parent"]
TASTE_COLUMNS = ["user_embedding:embedding", "user_embedding:space"]
TASTE_COLUMNS += ["user_taste:residual", "user_taste:space", "user_taste:pairs"]
SEGMENT_COLUMNS = ["segment_profile:parent"]

FEAST_SECONDS = 2.0
"""A read that takes longer counts as an outage: a ranking page waits no longer for its pictures."""
ROW_SECONDS = 1.0
"""For how long an item's row is kept: with the 3 s of the switches and 5 s at clients it stays under 10."""
MOST_ROWS = 50_000
"""Kept at once: about 2 kB each with nine covers, 100 MB."""
MANIFEST_SECONDS = 2.0
"""For how long what S3 said of an item that Feast does not have is remembered."""
MOST_REMEMBERED = 10_000
MOST_READERS = 8


class ItemRow(NamedTuple):
    """One item as the covers service last committed it, default rendition."""

    item_id: str
    item_version: int
    state: str
    generation: int
    release: int
    reference_image: str | None
    offer: Offer
    width: int
    height: int


def row_from_feast(item_id: str, row: dict[str, Any]) -> ItemRow | None:
    """None where the item has no row (Feast answers an absent entity with absent features)."""
    if row["state"] is None or row["generation"] is None:
        return None
    segments = row["segment_ids"] or ()
    return ItemRow(
        item_id=item_id,
        item_version=row["item_version"],
        state=row["state"],
        generation=row["generation"],
        release=row["release"],
        reference_image=row["reference_image"] or None,
        offer=Offer(
            segments,
            row["cover_ids"] or (),
            row["fallbacks"] or ("",) * len(segments),
            row.get("embeddings") or b"",
            row.get("space") or row.get("item_covers__space") or "",
        ),
        width=row["width"] or 0,
        height=row["height"] or 0,
    )


class Known(NamedTuple):
    """What Feast has of a user: where they belong, and their taste if it was asked for."""

    reader: Reader
    person: Person | None


def person_from_feast(row: dict[str, Any]) -> Person | None:
    """Imported embedding plus learned residual; None where there is neither. Of two spaces the embedding's counts."""
    embedding, residual = row["embedding"], row["residual"]
    space, learned_in = row["user_embedding__space"], row["user_taste__space"]
    if embedding is None and residual is None:
        return None
    if embedding is None:
        return Person(learned_in, np.asarray(residual, np.float32), row["pairs"] or 0)
    vector = np.asarray(embedding, np.float32)
    if residual is None or learned_in != space or len(residual) != len(vector):
        return Person(space, vector)
    return Person(space, vector + np.asarray(residual, np.float32), row["pairs"] or 0)


def row_from_manifest(manifest: Manifest, rendition: str = "default") -> ItemRow:
    covers = {segment: sizes[rendition] for segment, sizes in manifest.covers.items() if rendition in sizes}
    first = next(iter(covers.values()), None)
    return ItemRow(
        item_id=manifest.item_id,
        item_version=manifest.item_version,
        state=manifest.state,
        generation=manifest.generation,
        release=manifest.release,
        reference_image=manifest.reference_image,
        offer=Offer(
            list(covers), [cover.cover_id for cover in covers.values()], [c.fallback or "" for c in covers.values()]
        ),
        width=first.width if first else 0,
        height=first.height if first else 0,
    )


class Lookup:
    """Reads readers and items for the routes; its methods are for one event loop."""

    def __init__(
        self,
        features: Features,
        store: ObjectStore,
        clock: Callable[[], float] = time.monotonic,
        *,
        personal: bool = False,
    ) -> None:
        """
        Args:
            personal: whether any policy looks at tastes and embeddings; what none looks at is not read.
        """
        self._features, self._store, self._clock = features, store, clock
        self._user_columns = USER_COLUMNS + (TASTE_COLUMNS if personal else [])
        self._item_columns = ITEM_COLUMNS + (EMBEDDING_COLUMNS if personal else [])
        self._kept: dict[str, tuple[float, ItemRow]] = {}
        self._threads = ThreadPoolExecutor(2 * MOST_READERS, thread_name_prefix="api-lookup")
        self._rows: Batcher[_Key, ItemRow | Known] = Batcher(self._read)
        self._remembered: dict[str, tuple[float, ItemRow | None]] = {}
        self._s3_reads = asyncio.Semaphore(MOST_READERS)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def reader(self, user_id: str | None, segment_id: str | None) -> Known:
        """Who asks: a segment that is given beats the user's own; the user then only decides what is explored."""
        if segment_id is not None or user_id is None:
            return Known(Reader(user_id, segment_id), None)
        found = (await self._rows.get([("user_id", user_id)])).get(("user_id", user_id))
        return found if isinstance(found, Known) else Known(Reader(user_id), None)

    async def parent(self, segment_id: str) -> str | None:
        """The segment from which one that was asked for by its id came."""
        rows = await self._feast("segments", SEGMENT_COLUMNS, [{"segment_id": segment_id}])
        return rows[0]["parent"] or None

    async def items(self, item_ids: Iterable[str]) -> dict[str, ItemRow | Problem]:
        """Each item's row, or the problem with it.

        Raises:
            Problem: 503 when Feast is away.
        """
        asked = list(dict.fromkeys(item_ids))
        now = self._clock()
        held = {item_id: self._kept[item_id] for item_id in asked if item_id in self._kept}
        found = {item_id: row for item_id, (until, row) in held.items() if now < until}
        if wanted := [("item_id", item_id) for item_id in asked if item_id not in found]:
            with tracing.span("feast", **{"icg.items": len(wanted)}):
                read = await self._rows.get(wanted)
            new = {key[1]: item for key in wanted if isinstance(item := read.get(key), ItemRow)}
            self._keep(new, now)
            found |= new
        missed = [item_id for item_id in asked if item_id not in found]
        late = dict(zip(missed, await asyncio.gather(*map(self._from_manifest, missed)), strict=True)) if missed else {}
        rows: dict[str, ItemRow | Problem] = {}
        for item_id in asked:
            row: ItemRow | Problem = found.get(item_id) or late[item_id]
            if isinstance(row, ItemRow) and row.state != "ready":
                row = problems.retracted(item_id)
            rows[item_id] = row
        return rows

    def _keep(self, rows: Mapping[str, ItemRow], now: float) -> None:
        """For a second from before they were read, so that none is older than that."""
        if len(self._kept) + len(rows) > MOST_ROWS:
            self._kept = {item_id: kept for item_id, kept in self._kept.items() if now < kept[0]}
        if len(self._kept) + len(rows) <= MOST_ROWS:
            self._kept |= {item_id: (now + ROW_SECONDS, row) for item_id, row in rows.items()}

    async def item(self, item_id: str) -> ItemRow:
        """One item's row.

        Raises:
            Problem: unknown, retracted, or a store of ours is away.
        """
        row = (await self.items([item_id]))[item_id]
        if isinstance(row, Problem):
            raise row
        return row

    async def scores(self, row: ItemRow) -> Sequence[float | None]:
        """The preference model's scores, one a segment; None where Feast has none of this generation."""
        found = (await self._feast("scores", SCORE_COLUMNS, [{"item_id": row.item_id}]))[0]
        if found["generation"] == row.generation and len(found["scores"] or ()) == len(row.offer.segment_ids):
            return list(found["scores"])
        return [None] * len(row.offer.segment_ids)

    async def probe(self) -> None:
        """Does Feast answer?

        Raises:
            Problem: 503 when it does not.
        """
        await self._feast("probe", USER_COLUMNS, [{"user_id": "~"}])

    async def in_thread(self, call: Callable[[], T]) -> T:
        """A blocking call to S3, off the event loop.

        Raises:
            Problem: 503 when S3 is away.
        """
        async with self._s3_reads:
            try:
                with tracing.span("s3"):
                    return await asyncio.get_running_loop().run_in_executor(self._threads, call)
            except StorageFault as fault:
                log.warning("object storage does not answer: %s", fault)
                raise problems.unavailable("Object storage") from fault

    async def _read(self, keys: list[_Key]) -> dict[_Key, ItemRow | Known]:
        """Users and items in one call: entities that hold one of each, until both have run out."""
        users = [key for kind, key in keys if kind == "user_id"]
        items = [key for kind, key in keys if kind == "item_id"]
        columns = (self._user_columns if users else []) + (self._item_columns if items else [])
        both = [(kind, listed) for kind, listed in (("user_id", users), ("item_id", items)) if listed]
        entities = [
            {kind: listed[min(k, len(listed) - 1)] for kind, listed in both} for k in range(max(len(users), len(items)))
        ]
        what = "both" if users and items else "users" if users else "items"
        rows = await self._feast(what, columns, entities)
        found: dict[_Key, ItemRow | Known] = {}
        for user_id, row in zip(users, rows, strict=False):
            person = person_from_feast(row) if "residual" in row else None
            if row["segment_id"] or person is not None:
                reader = Reader(user_id, row["segment_id"] or None, row["parent"] or None)
                found["user_id", user_id] = Known(reader, person)
        for item_id, row in zip(items, rows, strict=False):
            item = row_from_feast(item_id, row)
            if item is not None:
                found["item_id", item_id] = item
        return found

    async def _feast(
        self, what: str, columns: Sequence[str], entities: Sequence[Mapping[str, str]]
    ) -> list[dict[str, Any]]:
        began = time.perf_counter()
        try:
            reading = asyncio.wrap_future(self._features.read_soon(columns, entities))
            return await asyncio.wait_for(reading, FEAST_SECONDS)
        except (FeatureFault, TimeoutError) as fault:
            metrics.FEAST_FAULTS.inc()
            log.warning("Feast does not answer: %s", fault or "timed out")
            raise problems.unavailable("The feature store") from fault
        finally:
            metrics.FEAST_SECONDS.labels(what).observe(time.perf_counter() - began)

    async def _from_manifest(self, item_id: str) -> ItemRow | Problem:
        remembered = self._remembered.get(item_id)
        if remembered is None or self._clock() >= remembered[0]:
            metrics.MANIFEST_READS.inc()
            try:
                row = await self.in_thread(lambda: self._manifest_row(item_id))
            except Problem as problem:
                return problem
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered.clear()
            remembered = (self._clock() + MANIFEST_SECONDS, row)
            self._remembered[item_id] = remembered
        return remembered[1] or problems.unknown_item(item_id)

    def _manifest_row(self, item_id: str) -> ItemRow | None:
        stored = self._store.get(manifest_key(item_id))
        if stored is None:
            return None
        try:
            return row_from_manifest(Manifest.decode(stored.data))
        except ValidationError as error:
            log.error("the manifest of %s is not one: %s", item_id, error)
            return None
