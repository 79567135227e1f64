"""A set of segments on its way into a release, and in which order items are redrawn for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import AwareDatetime

from workers.events import Digest, Id
from workers.records import Manifest, Record, Segment, SegmentSet

KEY = "segments/proposal.json"
MOST_ITEMS = 200_000
"""In the record: 10 MB. An item behind them is drawn for the new segments when it is published or refreshed next."""


class Proposal(Record):
    """`segments/proposal.json`: the one set that is on its way; absent or ended when none is.

    First the covers of its new segments are drawn for the items in `first`; then it is released and people move; then
    the rest of the items follow in `queue`, and those whose kept segments have moved.
    """

    segments: Digest
    replaces: Digest | None = None
    space: Digest
    why: str
    made: AwareDatetime
    new: tuple[Id, ...]
    moved: tuple[Id, ...]
    first: tuple[Id, ...]
    queue: tuple[Id, ...]
    asked: int = 0
    """How many of `first`, and after the release of `queue`, a refresh was sent for."""
    released: int | None = None
    ended: bool = False
    """Nothing is left to do. A record that is written over, not deleted, so that every step is a compare-and-swap."""


def changed(before: Sequence[Segment], after: SegmentSet) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids that are new, and kept ones whose vector is another: only these are drawn."""
    old = {each.segment_id: each.vector for each in before}
    new = tuple(each.segment_id for each in after.segments if each.segment_id not in old)
    moved = tuple(
        each.segment_id for each in after.segments if each.segment_id in old and old[each.segment_id] != each.vector
    )
    return new, moved


def order(newest: Iterable[str], seen: Mapping[str, int]) -> list[str]:
    """Newest and most seen first, turn by turn: neither a quiet new item nor an old favourite waits for all others.

    Args:
        newest: all items, the newest first.
        seen: impressions of late; an item without one counts 0.
    """
    by_time = list(newest)
    by_views = sorted(by_time, key=lambda item: -seen.get(item, 0))  # stable: among equals the newer first
    turns = (item for pair in zip(by_views, by_time, strict=True) for item in pair)
    return list(dict.fromkeys(turns))[:MOST_ITEMS]


def covered(manifest: Manifest | None, segments: Iterable[str]) -> bool:
    """Whether an item has what these segments will be shown, or is gone. A stand-in for one under the gate counts."""
    if manifest is None or manifest.state != "ready":
        return True
    return all(segment in manifest.covers for segment in segments) or not manifest.covers


class Budget:
    """Covers an hour, as a bucket that fills with time and holds at most one look's worth, or one item."""

    def __init__(self, covers_per_hour: float, look_seconds: float) -> None:
        self._rate = covers_per_hour / 3600
        self._most = self._rate * look_seconds
        self._left = self._most
        self._at: float | None = None

    def fill(self, now: float) -> None:
        """Args: now: seconds of a clock that only grows."""
        if self._at is not None:
            self._left = min(self._most, self._left + self._rate * (now - self._at))
        self._at = now

    def take(self, covers: int) -> bool:
        """Whether so many may be drawn now. What is more than the bucket holds is taken from the looks to come."""
        if self._left < min(covers, self._most):
            return False
        self._left -= covers
        return True
