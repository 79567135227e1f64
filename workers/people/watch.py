"""Segments that follow people: looked at every few minutes, rebuilt on a schedule or on drift.

A rebuilt set is *proposed*: stored, with the vectors of its new segments in Feast, and nobody moves. The items that can
be drawn within `first_hours` are asked for by `item-refresh`, newest and most seen first, under a budget of covers an
hour. Once all of them have covers for the new segments the set goes into a release and people move; the rest follows
under the same budget. All of it is one record in S3, so that a restart goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np
from prometheus_client import Counter, Gauge

from workers import clustering, embeddings, segments
from workers.erased import Erased
from workers.events import ItemRefresh
from workers.exceptions import Conflict, UserError
from workers.features import Features
from workers.messaging import Producer
from workers.people import catalogue
from workers.people.proposal import KEY, Budget, Proposal, changed, covered, order
from workers.records import Manifest, Release, Segment, SegmentSet, manifest_key
from workers.releases import Releases
from workers.settings import Settings
from workers.storage import ObjectStore
from workers.users import current

log = logging.getLogger(__name__)

SAMPLE = 20_000
"""People whose drift is measured: their share is known within 0.7 points (95 %)."""
FIRST, REST = 2, 1
"""Priorities of refreshes: before and after the release. Asked for by hand it may be 0 to 9; a publish beats all."""

_DRIFT = Gauge("icg_segments_drift", "Share of people nearer to another segment than to their own.")
_ASKED = Counter("icg_segments_refreshes", "Items asked to be redrawn.")
_WAITING = Gauge("icg_segments_waiting_items", "Items of the proposal that are not asked for yet.")
_SETS = Counter("icg_segments_sets", "Sets of segments.", ["step"])


class Watch:
    """One look after the other, from one thread.

    Args:
        clock: seconds, for the budget.
        now: for the schedule.
    """

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        features: Features,
        producer: Producer,
        erased: Erased,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings, self._set = settings, settings.segments
        self._store, self._features, self._producer, self._erased = store, features, producer, erased
        self._clock, self._now = clock, now
        self._releases = Releases(store, settings.cache, producer)
        self._rebuilt = datetime.min.replace(tzinfo=UTC)
        self._budget = Budget(self._set.covers_per_hour, self._set.look_seconds)
        self._etag: str | None = None  # of the record as it was last read or written

    def look(self) -> Proposal | None:
        """Go one step on; the proposal as it is now, None if none is on its way.

        Raises:
            Fault: look again later.
            UserError: nothing is released, or too few users are imported.
        """
        try:
            return self._look()
        except Conflict:
            # Two run for a while when one takes over from the other; what both did until here does no harm twice.
            log.warning("another process looks after the segments as well: this look is left to it")
            return None

    def _look(self) -> Proposal | None:
        release = current(self._releases)
        self._budget.fill(self._clock())
        stored = self._store.get(KEY)
        self._etag = stored.etag if stored is not None else None
        proposal = Proposal.decode(stored.data) if stored is not None else None
        if proposal is not None and proposal.ended:
            proposal = None
        if proposal is not None and self._overtaken(proposal, release):
            log.info("proposal %s is dropped: other segments were released meanwhile", proposal.segments[:12])
            _SETS.labels("dropped").inc()
            self._end(proposal)
            proposal = None
        if proposal is None:
            why = self._why(release)
            return self._propose(release, why) if why is not None else None
        if proposal.released is None:
            return self._draw_first(proposal)
        return self._draw_rest(proposal)

    def _overtaken(self, proposal: Proposal, release: Release) -> bool:
        expected = proposal.segments if proposal.released is not None else proposal.replaces
        # Between a release and our note of it the release has the proposed set already.
        return release.parts["space"] != proposal.space or release.parts.get("segments") not in {
            expected,
            proposal.segments,
        }

    # -- when ---------------------------------------------------------------------------------------------------------

    def _why(self, release: Release) -> str | None:
        """Why the segments have to be rebuilt now, None if they have not."""
        revision = release.parts.get("segments")
        if revision is None:
            return "there are no segments yet"
        # Equal sets are one revision with one card: how old the look at it is, only this process knows.
        since = max(self._releases.card("segments", revision).time, self._rebuilt)
        age = (self._now() - since).total_seconds()
        if self._set.rebuild_seconds and age >= self._set.rebuild_seconds:
            return f"they are {age / 3600:.1f} h old"
        drift = self._drift(release, self._released(release))
        _DRIFT.set(drift)
        if drift >= self._set.drift:
            return f"{drift:.0%} of the people are nearer to another segment than to their own"
        return None

    def _drift(self, release: Release, released: Sequence[Segment]) -> float:
        """Share of (a sample of) people whose nearest segment is not the one that Feast has them in."""
        users = embeddings.load(self._store, release.parts["space"])
        if users is None or not users.ids or not released:
            return 0.0
        if len(users.ids) > SAMPLE:
            rows = np.random.default_rng(release.number).choice(len(users.ids), SAMPLE, replace=False)
            users = users.take(sorted(rows.tolist()))
        vectors = users.vectors + segments.residuals(self._features, users, release.parts["space"])
        nearest = clustering.nearest(vectors, np.array([each.vector for each in released], np.float32))
        belong: list[str | None] = []
        for at in range(0, len(users.ids), segments.BATCH):
            asked = [{"user_id": user} for user in users.ids[at : at + segments.BATCH]]
            belong += [row["segment_id"] for row in self._features.read(["user_segment:segment_id"], asked)]
        moved = [
            is_in is not None and is_in != released[near].segment_id
            for is_in, near in zip(belong, nearest.tolist(), strict=True)
        ]
        return float(np.mean(moved))

    # -- steps --------------------------------------------------------------------------------------------------------

    def _propose(self, release: Release, why: str) -> Proposal | None:
        before = self._released(release)
        built = segments.build_set(
            self._settings, groups=self._set.groups, k_min=self._set.k_min, release=False, features=self._features
        )
        new, moved = changed(before, built.segments)
        self._rebuilt = self._now()
        newest = [manifest.item_id for manifest in catalogue.manifests(self._store)]
        queue = order(newest, catalogue.seen(self._settings.s3, self._now()))
        room = int(self._set.covers_per_hour * self._set.first_hours / max(1, len(new)))
        proposal = Proposal(
            segments=built.revision,
            replaces=release.parts.get("segments"),
            space=release.parts["space"],
            why=why,
            made=self._now(),
            new=new,
            moved=moved,
            first=tuple(queue[:room]) if new and before else (),
            queue=tuple(queue),
        )
        log.info(
            "segments proposed, %s: %d new, %d moved, %d items first", why, len(new), len(moved), len(proposal.first)
        )
        _SETS.labels("proposed").inc()
        self._write(proposal)
        return proposal if proposal.first else self._release(proposal)

    def _draw_first(self, proposal: Proposal) -> Proposal | None:
        proposal = self._ask(proposal, proposal.first, proposal.new, None)
        if proposal.asked < len(proposal.first):
            return proposal
        for item_id in proposal.first:
            stored = self._store.get(manifest_key(item_id))
            if not covered(Manifest.decode(stored.data) if stored is not None else None, proposal.new):
                return proposal
        return self._release(proposal)

    def _release(self, proposal: Proposal) -> Proposal | None:
        """Profiles, release, moves; then the rest of the items is to be drawn."""
        found = self._releases.segment_set(proposal.segments)
        segments.push_profiles(self._features, found, proposal.segments, leave_out=set())
        release = current(self._releases)
        if release.parts.get("segments") != proposal.segments:
            users = sum(each.users for each in found.segments)
            reason = f"{len(found.segments)} segments of {users} users: {proposal.why}"
            release = self._releases.publish({"segments": proposal.segments}, reason, "segments")
        self._move(found, proposal)
        _SETS.labels("released").inc()
        log.info("segments %s are in release %d", proposal.segments[:12], release.number)
        # Items that were published meanwhile are in no queue yet.
        known = set(proposal.queue)
        late = [each.item_id for each in catalogue.manifests(self._store) if each.item_id not in known]
        proposal = proposal.model_copy(
            update={"released": release.number, "asked": 0, "queue": (*late, *proposal.queue)}
        )
        self._write(proposal)
        return self._draw_rest(proposal)

    def _draw_rest(self, proposal: Proposal) -> Proposal | None:
        wanted = (*proposal.new, *proposal.moved)
        if wanted:
            proposal = self._ask(proposal, proposal.queue, wanted, proposal.released)
        if wanted and proposal.asked < len(proposal.queue):
            return proposal
        self._end(proposal)
        _WAITING.set(0)
        return None

    def _ask(self, proposal: Proposal, items: Sequence[str], wanted: tuple[str, ...], release: int | None) -> Proposal:
        """Send refreshes as far as the budget goes. One that is sent twice, after a crash, changes nothing."""
        asked = proposal.asked
        sent = []
        while asked < len(items) and self._budget.take(len(wanted)):
            refresh = ItemRefresh(
                item_id=items[asked],
                segments=wanted,
                reason=f"segments: {proposal.why}"[:256],
                release=release,
                priority=FIRST if release is None else REST,
            )
            sent.append(self._producer.send_event(refresh))
            asked += 1
        for delivery in sent:
            delivery.result()
        _WAITING.set(len(items) - asked)
        if asked == proposal.asked:
            return proposal
        _ASKED.inc(asked - proposal.asked)
        proposal = proposal.model_copy(update={"asked": asked})
        self._write(proposal)
        return proposal

    def _move(self, found: SegmentSet, proposal: Proposal) -> None:
        """Everybody into their nearest segment, as they are now."""
        users = embeddings.load(self._store, proposal.space)
        if users is None:
            raise UserError("the imported users are gone")
        vectors = users.vectors + segments.residuals(self._features, users, proposal.space)
        nearest = clustering.nearest(vectors, np.array([each.vector for each in found.segments], np.float32))
        self._erased.poll()
        segments.push_moves(
            self._features, users, [found.segments[near] for near in nearest.tolist()], proposal.segments, self._erased
        )

    # -- records ------------------------------------------------------------------------------------------------------

    def _released(self, release: Release) -> list[Segment]:
        return segments.before(self._releases, release, release.parts["space"])

    def _write(self, proposal: Proposal) -> None:
        """Raises Conflict where another process wrote since this look began."""
        self._etag = self._store.put_if(KEY, proposal.encode(), self._etag)

    def _end(self, proposal: Proposal) -> None:
        # Ids of 200,000 items are no longer needed.
        self._write(proposal.model_copy(update={"ended": True, "first": (), "queue": ()}))
