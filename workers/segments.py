"""`icg segments`: groups of users with one vector each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.exceptions import UserError

if TYPE_CHECKING:
    from workers.embeddings import Users
    from workers.erased import Erased
    from workers.features import Features
    from workers.records import Release, Segment, SegmentSet
    from workers.releases import Releases
    from workers.settings import Settings

app = typer.Typer()

BATCH = 5_000


@app.callback()
def _group() -> None:
    """Groups of users with one vector each."""


@app.command("build")
def build_command(
    groups: Annotated[int, typer.Option(min=1, max=1000, help="How many groups to look for.")] = 8,
    k_min: Annotated[int, typer.Option(min=1, help="Groups with fewer users merge into the nearest.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="The same users and seed give the same groups.")] = 0,
    release: Annotated[
        bool, typer.Option("--release/--propose", help="Put it into a release, or only store it for later.")
    ] = True,
) -> None:
    """Group the imported users by what they like, and release the groups as segments."""
    from rich.console import Console
    from rich.table import Table

    from workers.settings import settings

    built = build_set(settings(), groups=groups, k_min=k_min, seed=seed, release=release)
    table = Table("segment", "users", "parent", "is")
    for segment in built.segments.segments:
        news = "kept" if segment.segment_id in built.kept else "new"
        table.add_row(segment.segment_id, str(segment.users), segment.parent or "", news)
    Console().print(table)
    said = f"release {built.release.number}" if built.release else "proposed"
    typer.echo(
        f"{said}: {len(built.segments.segments)} segments of {built.users} users, revision {built.revision[:12]}"
    )


@dataclass(frozen=True)
class Built:
    """What `build_set` made.

    Attributes:
        kept: ids that the set before had too.
        release: None where the set was only proposed.
    """

    segments: SegmentSet
    revision: str
    kept: set[str]
    users: int
    release: Release | None


def build(config: Settings, *, groups: int = 8, k_min: int = 20, seed: int = 0) -> Release:
    """Group the imported users and release the groups. Raises as `build_set`."""
    built = build_set(config, groups=groups, k_min=k_min, seed=seed)
    assert built.release is not None
    return built.release


def build_set(
    config: Settings,
    *,
    groups: int = 8,
    k_min: int = 20,
    seed: int = 0,
    release: bool = True,
    features: Features | None = None,
) -> Built:
    """Group users by imported embedding plus taste, name the groups, and store or release them as part `segments`.

    The order keeps every reader whole: the part, the profiles of the segments, the release, then the users' moves.
    A proposed set is stored, with the profiles of its new segments so that their covers can be drawn; the release and
    the users stay as they are.

    Args:
        features: where the caller has the feature store open.

    Raises:
        UserError: no release, no users in its space, or fewer than `k_min` of them.
    """
    from workers import clustering, embeddings
    from workers.erased import Erased
    from workers.features import Features
    from workers.records import SegmentSet
    from workers.releases import SEGMENTS_FILE, Releases
    from workers.storage import ObjectStore
    from workers.users import current

    store = ObjectStore(config.s3)
    releases = Releases(store, config.cache)
    base = current(releases)
    space = base.parts["space"]
    users = embeddings.load(store, space)
    if users is None:
        raise UserError("no users are imported in the released space: `icg users import FILE` first")
    if len(users.ids) < k_min:
        raise UserError(f"{len(users.ids)} users are fewer than --k-min {k_min}: one group would name its members")
    own = Features(config.feast) if features is None else None
    features = own or features
    assert features is not None
    try:
        vectors = users.vectors + residuals(features, users, space)
        found = clustering.merge_small(vectors, clustering.kmeans(vectors, groups, seed), k_min)
        replaced = before(releases, base, space)
        made = clustering.named(found, replaced, f"{space}\n{base.parts.get('segments', '')}")
        segments = SegmentSet(space=space, segments=made)
        revision = releases.put_part(
            "segments",
            {SEGMENTS_FILE: segments.encode()},
            space=space,
            made_by="icg segments build",
            parents={"segments": base.parts["segments"]} if "segments" in base.parts else {},
            metrics={"users": float(len(users.ids)), "segments": float(len(made))},
        )
        old = {each.segment_id for each in replaced}
        kept = {each.segment_id for each in made} & old
        # A kept segment of a proposed set has its old vector still: covers are drawn for it under the present release.
        push_profiles(features, segments, revision, leave_out=set() if release else old)
        if not release:
            return Built(segments, revision, kept, len(users.ids), None)
        if base.parts.get("segments") != revision:
            base = _publish(config, revision, f"{len(made)} segments of {len(users.ids)} users")
        erased = Erased(config, store)
        erased.poll()
        push_moves(features, users, [made[label] for label in found.labels], revision, erased)
        return Built(segments, revision, kept, len(users.ids), base)
    finally:
        if own is not None:
            own.close()


def _publish(config: Settings, revision: str, reason: str) -> Release:
    from workers.messaging import Producer
    from workers.releases import Releases
    from workers.storage import ObjectStore

    producer = Producer(config.kafka, "segments")
    try:
        releases = Releases(ObjectStore(config.s3), config.cache, producer)
        return releases.publish({"segments": revision}, reason, "segments")
    finally:
        producer.close()


def push_profiles(features: Features, segments: SegmentSet, revision: str, leave_out: set[str]) -> None:
    """Write the segments' vectors, from which covers are drawn."""
    features.push(
        "segment_profile",
        [
            {
                "segment_id": each.segment_id,
                "vector": each.vector,
                "parent": each.parent,
                "space": segments.space,
                "segments": revision,
                "users": each.users,
            }
            for each in segments.segments
            if each.segment_id not in leave_out
        ],
    )


def push_moves(features: Features, users: Users, into: Sequence[Segment], revision: str, erased: Erased) -> None:
    """Put users into their segments; not those who asked to be forgotten since the table was read."""
    moves = [
        {"user_id": user, "segment_id": segment.segment_id, "parent": segment.parent, "segments": revision}
        for user, segment in zip(users.ids, into, strict=True)
        if not erased.has(user)
    ]
    for at in range(0, len(moves), BATCH):
        features.push("user_segment", moves[at : at + BATCH])


def residuals(features: Features, users: Users, space: str) -> Any:
    """What was learned of each user on top of the embedding, 0 where nothing was or in another space: [n, d]."""
    import numpy as np

    residuals = np.zeros_like(users.vectors)
    names = ["user_taste:residual", "user_taste:space"]
    for at in range(0, len(users.ids), BATCH):
        answers = features.read(names, [{"user_id": user} for user in users.ids[at : at + BATCH]])
        for row, answer in enumerate(answers, at):
            if answer["residual"] is not None and answer["space"] == space:
                residuals[row] = answer["residual"]
    return residuals


def before(releases: Releases, release: Release, space: str) -> list[Segment]:
    """The released segments that the new ones replace; none where their vectors lie in another space.

    Raises:
        BadPart: as `Releases.segments`.
    """
    found = releases.segments(release)
    return found.segments if found is not None and found.space == space else []
