"""What an event does to an item: from event, manifest and release to a decision, and to the covers that are wanted.

No I/O here. The manifest is the commit point; what is written there, and said of it, is in `workers.covers.commit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.events import NEUTRAL, ItemPublish, ItemRefresh, Outcome, Source
from workers.records import (
    CoverInputs,
    Manifest,
    ManifestCover,
    Release,
    Rendition,
    seed_of,
    sha256,
)

Vector = NDArray[np.float32]
Covers = Mapping[str, Mapping[str, ManifestCover]]

REFERENCE = "reference"
"""Stands in `CoverInputs.vector_sha256` for the platform's own picture in our size and format."""


class Embedding(NamedTuple):
    """A cover's preference embedding [d], in which space, and under which release it was drawn."""

    vector: NDArray[np.float16]
    space: str
    release: int


@dataclass(frozen=True, slots=True)
class Item:
    """What an item's covers are drawn from, whichever event asks for them."""

    item_id: str
    item_version: int
    title: str | None
    reference_image: str | None
    category: str | None
    language: str | None
    published_by: Source


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw covers. `segments` None: all of the release, `neutral` with them."""

    item: Item
    segments: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Retire:
    """Take the item down by writing this tombstone."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Keep:
    """Write nothing; say again what is so, and where an event asked for more than that, why not."""

    outcome: Outcome
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """This worker's release is too old for the write; decide again under this one or a later one."""

    release: int


Decision = Draw | Retire | Keep | Wait


def same_message(one: Source, other: Source) -> bool:
    """Whether both name one Kafka message; the producer's own id may be missing in a record."""
    return (one.topic, one.partition, one.offset) == (other.topic, other.partition, other.offset)


def decide(event: ItemPublish | ItemRefresh, source: Source, manifest: Manifest | None, release: int) -> Decision:
    """What an event does, given what is committed.

    A message that made the manifest's version (publish, retract) or its last generation (refresh) finds its own work
    and keeps its outcome. Equal versions from another message change nothing: a platform that wants other pixels raises
    the version or asks for a refresh.

    Args:
        release: number of the release that this worker would draw under.
    """
    if isinstance(event, ItemRefresh):
        return _decide_refresh(event, source, manifest, release)
    if manifest is not None and event.item_version < manifest.item_version:
        return Keep(Outcome.SUPERSEDED, f"version {event.item_version} is older than version {manifest.item_version}")
    if event.action == "retract":
        return _decide_retract(event, source, manifest, release)
    if manifest is not None and event.item_version == manifest.item_version:
        if manifest.state == "retracted":
            return Keep(Outcome.SUPERSEDED, f"version {event.item_version} is retracted; a greater one brings it back")
        if same_message(manifest.published_by, source):
            return Keep(Outcome.DRAWN)
        return Keep(Outcome.UNCHANGED, _published_already(event, manifest))
    if manifest is not None and manifest.release > release:
        # A greater version may be written, but a manifest never goes back in its release either.
        return Wait(manifest.release)
    item = Item(
        item_id=event.item_id,
        item_version=event.item_version,
        title=event.title,
        reference_image=event.reference_image,
        category=event.category,
        language=event.language,
        published_by=source,
    )
    return Draw(item, None)


def _published_already(event: ItemPublish, manifest: Manifest) -> str:
    names = ("title", "reference_image", "category", "language")
    other = [name for name in names if getattr(event, name) != getattr(manifest, name)]
    if not other:
        return f"version {event.item_version} is published already"
    return f"version {event.item_version} is published already, with another {' and '.join(other)}; raise the version"


def _decide_retract(event: ItemPublish, source: Source, manifest: Manifest | None, release: int) -> Decision:
    if manifest is not None and manifest.state == "retracted" and event.item_version == manifest.item_version:
        if same_message(manifest.published_by, source):
            return Keep(Outcome.RETRACTED)
        return Keep(Outcome.UNCHANGED, f"version {event.item_version} is retracted already")
    tombstone = Manifest(
        item_id=event.item_id,
        item_version=event.item_version,
        state="retracted",
        generation=(manifest.generation if manifest else 0) + 1,
        release=max(release, manifest.release if manifest else 0),
        published_by=source,
        source=source,
        outcome=Outcome.RETRACTED,
    )
    return Retire(tombstone)


def _decide_refresh(event: ItemRefresh, source: Source, manifest: Manifest | None, release: int) -> Decision:
    if manifest is None:
        # Never published, or its publish is still on the way and will draw under the newest release anyway.
        return Keep(Outcome.UNCHANGED, "no such item is published")
    if manifest.state == "retracted":
        return Keep(Outcome.SUPERSEDED, "the item is retracted")
    if event.item_version is not None and event.item_version != manifest.item_version:
        outcome = Outcome.SUPERSEDED if event.item_version < manifest.item_version else Outcome.UNCHANGED
        return Keep(outcome, f"version {event.item_version} is not the published one, {manifest.item_version}")
    if same_message(manifest.source, source):
        return Keep(manifest.outcome)
    wanted = max(event.release or 0, manifest.release)
    if wanted > release:
        return Wait(wanted)
    item = Item(
        item_id=manifest.item_id,
        item_version=manifest.item_version,
        title=manifest.title,
        reference_image=manifest.reference_image,
        category=manifest.category,
        language=manifest.language,
        published_by=manifest.published_by,
    )
    return Draw(item, event.segments)


def may_write(previous: Manifest | None, new: Manifest) -> bool:
    """The write rule: a manifest never goes back, and a retracted item stays retracted until a greater version."""
    if previous is None:
        return True
    if new.release < previous.release or new.generation != previous.generation + 1:
        return False
    if new.item_version == previous.item_version:
        return previous.state == "ready"
    return new.item_version > previous.item_version


def segments_to_draw(asked: Sequence[str] | None, released: Iterable[str]) -> list[str]:
    """Which segments get a cover, `neutral` first.

    All of the release and `neutral` when nothing is named. Named ones that the release does not have are left out:
    their users have moved on.
    """
    known = [NEUTRAL, *(segment for segment in released if segment != NEUTRAL)]
    return known if asked is None else [segment for segment in known if segment in set(asked)]


def nothing_to_draw(asked: Sequence[str] | None, released: Iterable[str], release: int) -> str:
    """Why a refresh changes no cover."""
    unknown = sorted(set(asked or ()) - {NEUTRAL, *released})
    if not unknown:
        return f"its covers are those of release {release} already"
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return f"release {release} has no segment {', '.join(unknown[:5])}{more}"


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors [d] of segments; None where `neutral` has to stand in, and why."""

    by_segment: Mapping[str, Vector | None]
    problems: Mapping[str, str]


def vectors_from(segments: Iterable[str], rows: Mapping[str, Mapping[str, Any]], space: str, dimension: int) -> Vectors:
    """Vectors of the Feast view `segment_profile`, as far as they mean something in `space`.

    Args:
        rows: one row a segment, features by name; a row without a vector counts as missing.
    """
    found: dict[str, Vector | None] = {}
    problems: dict[str, str] = {}
    for segment in segments:
        found[segment] = None
        if segment == NEUTRAL:
            continue
        row = rows.get(segment, {})
        raw = row.get("vector")
        if raw is None or len(raw) == 0:
            problems[segment] = "missing"
        elif row.get("space") != space:
            problems[segment] = "space"
        elif len(raw) != dimension:
            problems[segment] = "dimension"
        else:
            vector = np.asarray(raw, dtype=np.float32)
            if np.isfinite(vector).all():
                found[segment] = vector
            else:
                problems[segment] = "not finite"
    return Vectors(found, problems)


@dataclass(frozen=True, slots=True)
class PlannedCover:
    """One picture to have. Segments with equal vectors share it; `vector` None draws nobody in particular."""

    cover_id: str
    inputs: CoverInputs
    vector: Vector | None
    segment_id: str


def plan_covers(
    item: Item,
    reference_sha256: str | None,
    vectors: Mapping[str, Vector | None],
    release: Release,
    sampler: Mapping[str, Any],
    rendition: Rendition,
) -> dict[str, PlannedCover]:
    """The picture that each segment should get. Segments without a vector share the neutral one.

    Args:
        vectors: [d] a segment, None for `neutral` and for segments whose vector is no use.
        sampler: steps, branch, scheduler, guidance, guided, personalization, dtype, slots.
    """
    planned: dict[str, PlannedCover] = {}
    by_id: dict[str, PlannedCover] = {}
    for segment, vector in vectors.items():
        means = NEUTRAL if vector is None else sha256(np.ascontiguousarray(vector, dtype="<f4").tobytes())
        inputs = _inputs(item, reference_sha256, means, release, sampler, rendition)
        cover_id = inputs.cover_id()
        first = NEUTRAL if vector is None else segment
        planned[segment] = by_id.setdefault(cover_id, PlannedCover(cover_id, inputs, vector, first))
    return planned


def plan_reference(
    item: Item, reference_sha256: str, release: Release, sampler: Mapping[str, Any], rendition: Rendition
) -> PlannedCover:
    """The platform's own picture in our size and format, which stands in where `neutral` is refused."""
    inputs = _inputs(item, reference_sha256, REFERENCE, release, sampler, rendition)
    return PlannedCover(inputs.cover_id(), inputs, None, NEUTRAL)


def _inputs(
    item: Item,
    reference_sha256: str | None,
    vector: str,
    release: Release,
    sampler: Mapping[str, Any],
    rendition: Rendition,
) -> CoverInputs:
    return CoverInputs(
        item_id=item.item_id,
        item_version=item.item_version,
        title_sha256=None if item.title is None else sha256(item.title.encode()),
        reference_sha256=reference_sha256,
        vector_sha256=vector,
        base=release.parts["base"],
        mllm=release.parts["mllm"],
        adapter=release.parts["adapter"],
        sampler=dict(sampler),
        seed=seed_of(item.item_id, item.item_version),
        rendition=rendition,
    )


def stale(planned: Mapping[str, PlannedCover], manifest: Manifest | None, rendition_id: str) -> dict[str, PlannedCover]:
    """Those of a refresh whose picture is not the one in the manifest already."""
    if manifest is None:
        return dict(planned)
    held = {
        segment: covers[rendition_id].cover_id for segment, covers in manifest.covers.items() if rendition_id in covers
    }
    return {segment: cover for segment, cover in planned.items() if held.get(segment) != cover.cover_id}
