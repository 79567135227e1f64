"""Covers in S3: which are there already, and how one is put there.

A cover's image comes first and its sidecar after it, so that a sidecar says that both are there. What is there already
stays, and is what the manifest will name: two workers that draw the same cover end with the same bytes.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from functools import partial

from PIL import Image

from workers import tracing
from workers.covers import metrics
from workers.covers.embeddings import Embeddings
from workers.covers.loading import Loaded
from workers.covers.patience import Patience
from workers.covers.plan import Item, PlannedCover
from workers.covers.studio import Judged
from workers.events import Source
from workers.exceptions import StorageFault
from workers.records import ManifestCover, Rendition, Sidecar, cover_key, sha256, sidecar_key
from workers.storage import ObjectStore


class Shelf:
    """Waits as long as S3 is away; lives on one event loop."""

    def __init__(self, store: ObjectStore, embeddings: Embeddings, patience: Patience) -> None:
        """
        Args:
            embeddings: is told of every cover that is seen here, for the rows in Feast.
        """
        self._store = store
        self._embeddings = embeddings
        self._patience = patience

    async def find(self, item: Item, wanted: Mapping[str, PlannedCover]) -> dict[str, ManifestCover]:
        """Of the wanted covers, by cover_id, those that a crash left or another event drew."""

        def look() -> dict[str, ManifestCover]:
            keys = set(self._store.list(f"covers/{item.item_id}/"))
            found: dict[str, ManifestCover] = {}
            for cover_id in wanted:
                beside = sidecar_key(item.item_id, cover_id)
                if beside in keys and cover_key(item.item_id, cover_id) in keys:
                    stored = self._store.get(beside)
                    if stored is not None:
                        found[cover_id] = self._entry(Sidecar.decode(stored.data))
            return found

        found = await self._patience("s3", "look for covers", look)
        metrics.REUSED.inc(len(found))
        return found

    async def put(
        self, item: Item, covers: Sequence[PlannedCover], judged: Mapping[str, Judged], loaded: Loaded, source: Source
    ) -> dict[str, ManifestCover]:
        """Encode and upload, in threads, while the next batch is drawn; entries by cover_id.

        Args:
            judged: at least of these covers, by cover_id.
        """
        put = partial(self._patience, "s3", "store a cover", self._put)
        with metrics.stage("store"):
            stored = await asyncio.gather(
                *(put(item, cover, judged[cover.cover_id], loaded, source) for cover in covers)
            )
        return {cover.cover_id: entry for cover, entry in zip(covers, stored, strict=True)}

    def _put(self, item: Item, cover: PlannedCover, judged: Judged, loaded: Loaded, source: Source) -> ManifestCover:
        data = encode(judged.image, cover.inputs.rendition)
        data = self._keep(cover_key(item.item_id, cover.cover_id), data, "image/webp")
        rewards = dict(judged.rewards)
        if cover.vector is not None:
            rewards["preference"] = float(loaded.judge.prefer([cover.vector], [judged.embedding])[0, 0])
        sidecar = Sidecar(
            cover_id=cover.cover_id,
            item_id=item.item_id,
            item_version=item.item_version,
            segment_id=cover.segment_id,
            sha256=sha256(data),
            bytes=len(data),
            inputs=cover.inputs,
            rewards={name: round(value, 6) for name, value in rewards.items()},
            embedding=judged.embedding,
            space=loaded.release.parts["space"],
            release=loaded.number,
            source=source,
            trace_id=tracing.current_trace_id(),
        )
        told = sidecar.encode()
        kept = self._keep(sidecar_key(item.item_id, cover.cover_id), told, "application/json")
        return self._entry(sidecar if kept is told else Sidecar.decode(kept))

    def _keep(self, key: str, data: bytes, media_type: str) -> bytes:
        """Write it where nothing is yet; what is there then."""
        if self._store.put_new(key, data, media_type):
            return data
        there = self._store.get(key)
        if there is None:
            raise StorageFault(
                f"{key}: S3 says that it exists when it is written, and that it does not when it is read"
            )
        return there.data

    def _entry(self, sidecar: Sidecar) -> ManifestCover:
        """What the manifest says of a cover; its embedding is remembered for the row in Feast."""
        self._embeddings.learn(sidecar)
        size = sidecar.inputs.rendition
        return ManifestCover(
            cover_id=sidecar.cover_id,
            sha256=sidecar.sha256,
            width=size.width,
            height=size.height,
            rewards=sidecar.rewards,
        )


def encode(image: Image.Image, size: Rendition) -> bytes:
    """WebP bytes; the same for the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=size.quality, lossless=size.quality == 100, method=4)
    return buffer.getvalue()


def filling(image: Image.Image, size: Rendition) -> Image.Image:
    """Scaled and cut around the middle to the rendition's size."""
    scale = max(size.width / image.width, size.height / image.height)
    scaled = image.resize(
        (max(size.width, round(image.width * scale)), max(size.height, round(image.height * scale))),
        Image.Resampling.LANCZOS,
    )
    left, top = (scaled.width - size.width) // 2, (scaled.height - size.height) // 2
    return scaled.crop((left, top, left + size.width, top + size.height))
