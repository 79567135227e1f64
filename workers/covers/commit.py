"""What is committed of an item and said of it: from covers to manifest, `cover-ready` and Feast row. No I/O here.

Everything that is said is made from the manifest alone, so that a replay after a crash says the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from workers.covers.plan import Covers, Embedding, Item, PlannedCover, same_message
from workers.events import NEUTRAL, CoverReady, Outcome, ReadyCover, Source
from workers.policies import pack
from workers.records import Manifest, ManifestCover, cover_key


def choose(
    planned: Mapping[str, PlannedCover],
    passed: Mapping[str, ManifestCover],
    reference: ManifestCover | None,
    before: Manifest | None,
    rendition_id: str,
) -> dict[str, dict[str, ManifestCover]]:
    """The cover that each segment has in the end: its own ▸ neutral ▸ the reference image ▸ none.

    Args:
        passed: covers by cover_id that the gate let through.
        before: the manifest into which a refresh is merged; its neutral cover stands in where none was drawn.
    """
    neutral: ManifestCover | None = None
    if NEUTRAL in planned:
        neutral = passed.get(planned[NEUTRAL].cover_id)
    elif before is not None:
        held = before.covers.get(NEUTRAL, {}).get(rendition_id)
        if held is not None and held.fallback is None:
            neutral = held
        elif reference is None:
            reference = held
    stand_in = (
        neutral.model_copy(update={"fallback": "neutral"})
        if neutral is not None
        else reference.model_copy(update={"fallback": "reference"})
        if reference is not None
        else None
    )
    chosen: dict[str, dict[str, ManifestCover]] = {}
    for segment, cover in planned.items():
        own = passed.get(cover.cover_id) if cover.vector is not None or segment == NEUTRAL else None
        final = own or stand_in
        if final is not None:
            chosen[segment] = {rendition_id: final}
    return chosen


def published(
    item: Item, source: Source, before: Manifest | None, release: int, reference_sha256: str | None, covers: Covers
) -> Manifest:
    """The manifest of a new version."""
    return Manifest(
        item_id=item.item_id,
        item_version=item.item_version,
        state="ready",
        generation=(before.generation if before else 0) + 1,
        release=release,
        title=item.title,
        reference_image=item.reference_image,
        reference_sha256=reference_sha256,
        category=item.category,
        language=item.language,
        published_by=item.published_by,
        source=source,
        outcome=Outcome.DRAWN,
        covers={segment: dict(renditions) for segment, renditions in covers.items()},
    )


def refreshed(before: Manifest, source: Source, release: int, covers: Covers) -> Manifest | None:
    """The manifest with the named segments merged in; None if that changes no cover."""
    merged = {**before.covers, **{segment: dict(renditions) for segment, renditions in covers.items()}}
    if merged == before.covers:
        return None
    return before.model_copy(
        update={
            "generation": before.generation + 1,
            "release": release,
            "source": source,
            "outcome": Outcome.DRAWN,
            "covers": merged,
            "time": datetime.now(UTC),
        }
    )


def ready_event(
    item_id: str,
    manifest: Manifest | None,
    source: Source,
    outcome: Outcome,
    address: Callable[[str], str],
    reason: str | None = None,
) -> CoverReady:
    """How an event ended, from the manifest alone; generation 0 says that the item has never been committed.

    Args:
        address: turns an object's key into the address that recommenders get.
        reason: why the event drew nothing.
    """
    if manifest is None:
        return CoverReady(
            item_id=item_id,
            item_version=0,
            action="retired",
            outcome=outcome,
            reason=reason,
            source=source,
            release=0,
            generation=0,
        )
    covers = tuple(
        ReadyCover(
            segment_id=segment,
            rendition=rendition,
            cover_id=cover.cover_id,
            address=address(cover_key(manifest.item_id, cover.cover_id)),
            sha256=cover.sha256,
            width=cover.width,
            height=cover.height,
            rewards=cover.rewards,
            fallback=cover.fallback,
        )
        for segment, renditions in manifest.covers.items()
        for rendition, cover in renditions.items()
    )
    # The commit is when it happened, for the message that made it and for each replay of that message.
    made_it = same_message(manifest.source, source) or same_message(manifest.published_by, source)
    return CoverReady(
        item_id=manifest.item_id,
        item_version=manifest.item_version,
        action="ready" if manifest.state == "ready" else "retired",
        outcome=outcome,
        reason=reason,
        source=source,
        covers=covers if manifest.state == "ready" else (),
        release=manifest.release,
        generation=manifest.generation,
        time=manifest.time if made_it else datetime.now(UTC),
    )


def feast_row(
    manifest: Manifest, rendition_id: str, embeddings: Mapping[str, Embedding] = MappingProxyType({})
) -> dict[str, Any]:
    """The item's row of the view `item_covers`, from the manifest and its covers' sidecars: one entry a segment.

    Args:
        embeddings: by cover_id. The row names one space, the one that the last written covers are in; a cover of
            another space has none in it.
    """
    covers = {segment: by[rendition_id] for segment, by in manifest.covers.items() if rendition_id in by}
    if manifest.state == "retracted":
        covers = {}
    first = next(iter(covers.values()), None)
    known = {cover.cover_id: embeddings[cover.cover_id] for cover in covers.values() if cover.cover_id in embeddings}
    newest = max(known.values(), key=lambda each: each.release, default=None)
    space, dimension = (newest.space, len(newest.vector)) if newest else ("", 0)
    vectors = {cover_id: each.vector for cover_id, each in known.items() if each.space == space}
    return {
        "item_id": manifest.item_id,
        "item_version": manifest.item_version,
        "state": manifest.state,
        "generation": manifest.generation,
        "release": manifest.release,
        "reference_image": manifest.reference_image or "",
        "segment_ids": list(covers),
        "cover_ids": [cover.cover_id for cover in covers.values()],
        "fallbacks": [cover.fallback or "" for cover in covers.values()],
        "scores": [cover.rewards.get("preference", 0.0) for cover in covers.values()],
        "embeddings": pack([vectors.get(cover.cover_id) for cover in covers.values()], dimension),
        "space": space,
        "width": first.width if first else 0,
        "height": first.height if first else 0,
    }
