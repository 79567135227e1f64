"""Which items come first, how many an hour, and when enough of them are covered."""

from __future__ import annotations

import hashlib

from workers.events import Source
from workers.people.proposal import Budget, changed, covered, order
from workers.records import Manifest, ManifestCover, Segment, SegmentSet

DIGEST = hashlib.sha256(b"x").hexdigest()


def manifest(*segments: str, state: str = "ready") -> Manifest:
    source = Source(topic="item-publish", partition=0, offset=0)
    cover = ManifestCover(cover_id=DIGEST, sha256=DIGEST, width=64, height=64)
    return Manifest(
        item_id="i",
        item_version=1,
        state=state,  # type: ignore[arg-type]
        generation=1,
        release=1,
        published_by=source,
        source=source,
        covers={segment: {"default": cover} for segment in segments},
    )


def test_newest_and_most_seen_take_turns_and_each_item_comes_once():
    newest = ["e", "d", "c", "b", "a"]
    assert order(newest, {"a": 9, "c": 5}) == ["a", "e", "c", "d", "b"]
    assert order(newest, {}) == newest
    assert order([], {"gone": 3}) == []


def test_only_new_ids_and_moved_vectors_are_drawn():
    before = [Segment(segment_id="kept", vector=[1, 0]), Segment(segment_id="moved", vector=[0, 1])]
    after = SegmentSet(
        space=DIGEST,
        segments=[
            Segment(segment_id="kept", users=9, vector=[1, 0]),
            Segment(segment_id="moved", vector=[0.1, 1]),
            Segment(segment_id="new", parent="kept", vector=[-1, 0]),
        ],
    )
    assert changed(before, after) == (("new",), ("moved",))


def test_an_item_is_covered_when_it_has_all_of_them_or_needs_none():
    assert covered(manifest("neutral", "a", "b"), ("a", "b"))
    assert not covered(manifest("neutral", "a"), ("a", "b"))
    assert covered(None, ("a",))
    assert covered(manifest(state="retracted"), ("a",))
    assert covered(manifest(), ("a",))  # nothing passed the gate, not even a stand-in


def test_the_budget_is_kept_over_the_hours_however_often_somebody_looks():
    budget = Budget(covers_per_hour=360, look_seconds=60)
    drawn = 0
    for second in range(0, 7200, 20):
        budget.fill(second)
        while budget.take(3):
            drawn += 3
    assert 690 <= drawn <= 730
    # An item that costs more than a look may spend is drawn all the same, and paid for by the looks to come.
    wide = Budget(covers_per_hour=360, look_seconds=60)
    taken = 0
    for second in range(0, 3600, 60):
        wide.fill(second)
        taken += wide.take(30)
    assert 11 <= taken <= 14
