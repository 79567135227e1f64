"""Segments that follow people, through S3, Feast and Kafka: proposed, drawn for, released, the rest drawn after."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from icg.preference import Head
from workers import embeddings
from workers.erased import Erased
from workers.events import NEUTRAL, ItemRefresh, Source
from workers.features import Features
from workers.messaging import Follower, Producer
from workers.people.proposal import KEY, Proposal
from workers.people.watch import Watch
from workers.records import Manifest, ManifestCover, Release, SegmentSet, manifest_key, sha256
from workers.releases import Releases
from workers.settings import S3, Feast, Kafka, Segments, Settings
from workers.storage import ObjectStore

DIMENSION, ITEMS = 16, 12


class World:
    """A catalogue, people in three directions, and a watch whose clocks stand still until they are moved."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store, self.features = ObjectStore(settings.s3), Features(settings.feast)
        self.producer = Producer(settings.kafka, "test")
        self.releases = Releases(self.store, settings.cache)
        self.space = self.releases.put_part("space", {"config.json": b"{}"})
        Head.start(self.space, DIMENSION).save(settings.cache / "head")
        files: dict[str, Path | bytes] = {path.name: path for path in (settings.cache / "head").iterdir()}
        head = self.releases.put_part("preference", files, space=self.space)
        self.releases.publish({"space": self.space, "preference": head}, "first", "space")
        self.started = datetime(2026, 11, 1, tzinfo=UTC)
        for k in range(ITEMS):
            self.cover(f"item-{k:02d}", NEUTRAL, time=self.started + timedelta(minutes=k))
        self.erased = Erased(settings, self.store)
        self.at = 0.0
        self.watch = self.again()
        self.refreshes = Follower(settings.kafka, ItemRefresh.topic, "end")

    def again(self) -> Watch:
        return Watch(
            self.settings, self.store, self.features, self.producer, self.erased,
            clock=lambda: self.at, now=lambda: datetime.now(UTC) + timedelta(seconds=self.at),
        )  # fmt: skip

    def close(self) -> None:
        self.refreshes.close()
        self.producer.close()
        self.features.close()

    def people(self, groups: list[tuple[int, int]]) -> None:
        """(direction, how many) for each group; ids go on from group to group."""
        rng = np.random.default_rng(0)
        vectors = [
            np.eye(DIMENSION)[direction] + 0.02 * rng.normal(size=DIMENSION)
            for direction, count in groups
            for _ in range(count)
        ]
        users = embeddings.Users([f"u{n}" for n in range(len(vectors))], np.array(vectors, np.float32))
        embeddings.add(self.store, self.space, users)

    def cover(self, item_id: str, *segments: str, time: datetime | None = None) -> None:
        """As the covers service would leave it."""
        stored = self.store.get(manifest_key(item_id))
        before = Manifest.decode(stored.data) if stored else None
        source = Source(topic="item-publish", partition=0, offset=0)
        there = before.covers if before else {}
        covers = {
            segment: {
                "default": ManifestCover(cover_id=sha256(segment.encode()), sha256=self.space, width=64, height=64)
            }
            for segment in segments
        }
        manifest = Manifest(
            item_id=item_id, item_version=1, state="ready", generation=(before.generation if before else 0) + 1,
            release=1, published_by=source, source=source, covers={**there, **covers},
            time=time or (before.time if before else self.started),
        )  # fmt: skip
        self.store.put_if(manifest_key(item_id), manifest.encode(), stored.etag if stored else None)

    def asked(self) -> list[ItemRefresh]:
        found = []
        quiet = 0
        while quiet < 3:
            messages = self.refreshes.poll(100, 0.3)
            quiet = 0 if messages else quiet + 1
            found += [ItemRefresh.decode(message.value) for message in messages]
        return found

    def released(self) -> SegmentSet | None:
        release = self.releases.current()
        assert release is not None
        revision = release.parts.get("segments")
        if revision is None:
            return None
        return SegmentSet.decode((self.releases.fetch("segments", revision) / "segments.json").read_bytes())

    def on_its_way(self) -> Proposal | None:
        stored = self.store.get(KEY)
        found = Proposal.decode(stored.data) if stored else None
        return None if found is None or found.ended else found

    def segment_of(self, user: str) -> str:
        return str(self.features.read(["user_segment:segment_id"], [{"user_id": user}])[0]["segment_id"])


@pytest.fixture
def world(own_kafka: Kafka, s3: S3, store: ObjectStore, feast_repo: Feast, tmp_path: Path) -> Iterator[World]:
    quick = Segments(look_seconds=60, groups=3, k_min=10, covers_per_hour=600, drift=0.2, first_hours=0.01)
    world = World(Settings(kafka=own_kafka, s3=s3, feast=feast_repo, cache=tmp_path / "cache", segments=quick))
    yield world
    world.close()


def test_the_life_of_a_set(world: World):
    world.people([(0, 30), (1, 30), (2, 30)])
    # The first set has nobody to take anything from: it is released at once, and all items are to be drawn.
    proposal = world.watch.look()
    first = world.released()
    assert first is not None
    assert proposal is not None
    assert proposal.released is not None
    ids = {each.segment_id for each in first.segments}
    sent = world.asked()
    # The newest, as nobody has seen anything yet: ten covers a look, three an item.
    assert {refresh.item_id for refresh in sent} == {"item-11", "item-10", "item-09"}
    assert {frozenset(refresh.segments or ()) for refresh in sent} == {frozenset(ids)}
    while world.watch.look() is not None:
        world.at += 60
    assert len(world.asked()) == ITEMS - 3
    assert world.on_its_way() is None

    # Nobody moves: nothing happens. A third of the people does: proposed, and nothing else changes for anybody.
    assert world.watch.look() is None
    lost = world.segment_of("u80")
    world.people([(0, 30), (1, 30), (5, 30)])
    world.at += 60
    proposal = world.watch.look()
    assert proposal is not None
    assert proposal.released is None
    assert "of the people are nearer to another segment" in proposal.why  # a third, less whom noise leaves nearest
    (new,) = proposal.new
    assert len(proposal.first) == 6
    assert world.released() == first
    assert world.segment_of("u80") == lost
    profile = world.features.read(["segment_profile:vector"], [{"segment_id": new}])[0]
    assert int(np.argmax(profile["vector"])) == 5

    # The first items are asked for, and the set waits until they have covers, across a restart.
    world.at += 60
    proposal = world.watch.look()
    assert proposal is not None
    assert proposal.asked == len(proposal.first)
    sent = world.asked()
    assert {(refresh.item_id, refresh.segments, refresh.release) for refresh in sent} == {
        (item, (new,), None) for item in proposal.first
    }
    for item in proposal.first[:-1]:
        world.cover(item, new)
    world.watch = world.again()
    world.at += 60
    assert world.watch.look() == proposal
    assert world.released() == first

    world.cover(proposal.first[-1], new)
    world.cover("item-new", NEUTRAL, *ids, time=datetime.now(UTC))  # published while the set was on its way
    world.at += 60
    proposal = world.watch.look()
    second = world.released()
    assert second is not None
    kept = {each.segment_id for each in second.segments} & ids
    assert {each.segment_id for each in second.segments} == kept | {new}
    assert len(kept) == 2
    assert world.segment_of("u80") == new
    assert world.segment_of("u0") in kept
    while world.watch.look() is not None:
        world.at += 60
    rest = world.asked()
    assert {refresh.item_id for refresh in rest} == {f"item-{k:02d}" for k in range(ITEMS)} | {"item-new"}
    assert {refresh.release for refresh in rest} == {world.releases.current().number}


def test_a_proposal_gives_way_to_another_release(world: World):
    world.people([(0, 30), (1, 30)])
    while world.watch.look() is not None:
        world.at += 60
    world.people([(0, 30), (7, 30)])
    world.at += 60
    proposal = world.watch.look()
    assert proposal is not None
    assert proposal.released is None
    from workers.segments import build

    built = build(world.settings, groups=2, k_min=10)  # by hand
    world.at += 60
    assert world.watch.look() is None
    assert world.on_its_way() is None
    assert world.releases.current() == built


def test_on_schedule_an_equal_set_changes_nothing(world: World):
    world.people([(0, 30), (1, 30)])
    while world.watch.look() is not None:
        world.at += 60
    number = world.releases.current().number
    world.asked()
    world.at += 2 * 86400
    assert world.watch.look() is None
    assert world.asked() == []
    assert world.releases.current().number == number


def test_who_was_erased_is_not_put_back_by_a_job_that_had_read_the_table(world: World):
    world.people([(0, 30), (1, 30)])
    world.erased.add("u3")
    while world.watch.look() is not None:
        world.at += 60
    rows = world.features.read(["user_segment:segment_id"], [{"user_id": "u3"}, {"user_id": "u4"}])
    assert rows[0]["segment_id"] is None
    assert rows[1]["segment_id"] is not None


def test_of_two_processes_one_gives_way(world: World, monkeypatch: pytest.MonkeyPatch):
    world.people([(0, 30), (1, 30)])
    other, why = world.again(), Watch._why
    number = world.releases.current().number

    def meanwhile(watch: Watch, release: Release) -> str | None:
        found = why(watch, release)
        if watch is other:
            world.watch.look()
        return found

    monkeypatch.setattr(Watch, "_why", meanwhile)
    assert other.look() is None
    proposal = world.on_its_way()
    assert proposal is not None
    assert proposal.released == world.releases.current().number == number + 1
    assert len(world.asked()) == 3  # ten covers a look, three an item: asked for once
    # And the other goes on where the first one is.
    monkeypatch.undo()
    world.at += 60
    assert other.look() is not None
    assert world.on_its_way().asked == 6
