"""Compares what was published with what came of it. Pure: evidence in, figures out, each with what it counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.faults.traffic import Wanted
from workers.events import CoverReady, Outcome
from workers.records import Manifest, Sidecar

Source = tuple[str, int, int]


@dataclass(frozen=True)
class Answer:
    """What the api said of an item."""

    status: int
    """200, 404 or 410 (retracted)."""
    item_version: int = 0
    generation: int = 0


@dataclass(frozen=True)
class Learned:
    """A partition of `user-behavior`: how far its learner's last state goes, and whether it is the one that reading the
    partition's messages once, in order, makes."""

    end: int
    offset: int
    state: str
    straight: str
    tastes_in_feast: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Pairs learned, in Feast and in the state, of people where the two differ."""


@dataclass(frozen=True)
class Twin:
    """What the same events came to in a run that nothing happened to."""

    objects: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each cover's bytes by cover_id."""
    manifests: Mapping[str, Manifest] = field(default_factory=dict)


@dataclass
class Evidence:
    """Everything that one run left."""

    valid: set[Source] = field(default_factory=set)
    nonsense: set[Source] = field(default_factory=set)
    ready: Mapping[Source, Sequence[CoverReady]] = field(default_factory=dict)
    dead: Mapping[Source, Sequence[object]] = field(default_factory=dict)
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    objects: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each cover's bytes by cover_id."""
    sidecars: Sequence[Sidecar] = ()
    twin: Twin = field(default_factory=Twin)
    seen: Mapping[str, Sequence[Manifest]] = field(default_factory=dict)
    """Each item's manifests in the order in which a watcher saw them."""
    rows: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Generation and state of each item in Feast."""
    rows_wanted: Mapping[Source, int] = field(default_factory=dict)
    """Rows that each message has to have in audit's tables."""
    rows_found: Mapping[Source, int] = field(default_factory=dict)
    learned: Mapping[int, Learned] = field(default_factory=dict)
    answers: Mapping[str, Sequence[Answer]] = field(default_factory=dict)
    """The api's, of each item, in their order."""


Findings = dict[str, list[str]]


def check(evidence: Evidence) -> Findings:
    """What is wrong, by figure, a line each."""
    return {
        "lost": _lost(evidence),
        "duplicated": _duplicated(evidence),
        "wrong_bytes": _wrong_bytes(evidence),
        "stale": _stale(evidence),
        "unaudited": _unaudited(evidence),
        "audited_twice": _audited_twice(evidence),
        "miscounted": _miscounted(evidence),
        "answers_back": answers_went_back(evidence.answers),
    }


def _lost(evidence: Evidence) -> list[str]:
    lines = [
        f"{source}: no outcome" for source in sorted(evidence.valid - evidence.ready.keys() - evidence.dead.keys())
    ]
    lines += [f"{source}: valid, and dead-lettered" for source in sorted(evidence.valid & evidence.dead.keys())]
    lines += [f"{source}: nonsense, and no dead letter" for source in sorted(evidence.nonsense - evidence.dead.keys())]
    said = {(event.item_id, event.generation) for events in evidence.ready.values() for event in events}
    lines += [
        f"{item_id}: nobody was told of generation {manifest.generation}, its last"
        for item_id, manifest in evidence.manifests.items()
        if (item_id, manifest.generation) not in said
    ]
    return lines


def _duplicated(evidence: Evidence) -> list[str]:
    lines = []
    covers: dict[tuple[str, int, str, int], set[str]] = defaultdict(set)
    for each in evidence.sidecars:
        covers[each.item_id, each.item_version, each.segment_id, each.release].add(each.cover_id)
    lines += [f"{place}: {len(ids)} covers" for place, ids in covers.items() if len(ids) > 1]
    by_id: dict[str, set[str]] = defaultdict(set)
    for events in evidence.ready.values():
        for event in events:
            # What changed nothing says when it was said; everything else is the commit's.
            changed = event.outcome in {Outcome.DRAWN, Outcome.RETRACTED}
            by_id[event.event_id()].add(event.model_dump_json(exclude=set() if changed else {"time", "outcome"}))
    lines += [f"cover-ready {event_id}: {len(values)} differ" for event_id, values in by_id.items() if len(values) > 1]
    return lines


def _wrong_bytes(evidence: Evidence) -> list[str]:
    lines = []
    for item_id, manifest in evidence.manifests.items():
        for segment, renditions in manifest.covers.items():
            for cover in renditions.values():
                stored = evidence.objects.get(cover.cover_id)
                if stored != cover.sha256:
                    lines.append(f"{item_id}/{segment}: the manifest names {cover.sha256[:8]}, there is {stored}")
    for cover_id, sha in evidence.twin.objects.items():
        if evidence.objects.get(cover_id, sha) != sha:
            lines.append(f"{cover_id}: other bytes than in the undisturbed run")
    for item_id, undisturbed in evidence.twin.manifests.items():
        ours = evidence.manifests.get(item_id)
        if ours is not None and (ours.item_version, ours.state) == (undisturbed.item_version, undisturbed.state):
            lines += _other_covers(ours, undisturbed)
    return lines


def _other_covers(ours: Manifest, undisturbed: Manifest) -> list[str]:
    """Where an item ends with other covers: after a read that failed it may be neutral ones for everybody."""
    missing = undisturbed.covers.keys() - ours.covers.keys() if undisturbed.release <= ours.release else ()
    lines = [f"{ours.item_id}/{segment}: no cover; in the undisturbed run there is one" for segment in sorted(missing)]
    for segment, renditions in ours.covers.items():
        for rendition, cover in renditions.items():
            other = undisturbed.covers.get(segment, {}).get(rendition, cover)
            if (cover.cover_id, cover.fallback) != (other.cover_id, other.fallback):
                lines.append(f"{ours.item_id}/{segment}: another cover than in the undisturbed run")
    return lines


def went_back(seen: Mapping[str, Sequence[Manifest]]) -> list[str]:
    """Where a manifest was followed by an older one, in the order in which they were seen."""
    lines = []
    for item_id, manifests in seen.items():
        for before, after in pairwise(manifests):
            back = (
                after.item_version < before.item_version
                or after.generation <= before.generation
                or after.release < before.release
                or (before.state == "retracted" and after.item_version == before.item_version)
            )
            if back:
                lines.append(f"{item_id}: went back from {_short(before)} to {_short(after)}")
    return lines


def _stale(evidence: Evidence) -> list[str]:
    lines = went_back(evidence.seen)
    for item_id, wanted in evidence.wanted.items():
        manifest = evidence.manifests.get(item_id)
        state = "retracted" if wanted.retracted else "ready"
        if manifest is None:
            lines.append(f"{item_id}: no manifest, wanted version {wanted.version}")
        elif (manifest.item_version, manifest.state) != (wanted.version, state):
            lines.append(f"{item_id}: ends as {_short(manifest)}, wanted version {wanted.version} {state}")
        elif state == "ready" and manifest.release < wanted.release:
            lines.append(f"{item_id}: ends as {_short(manifest)}, wanted release {wanted.release}")
        elif item_id in evidence.rows and evidence.rows[item_id] != (manifest.generation, manifest.state):
            lines.append(f"{item_id}: Feast has {evidence.rows[item_id]}, the manifest is {_short(manifest)}")
    return lines


def _unaudited(evidence: Evidence) -> list[str]:
    found = evidence.rows_found
    return [
        f"{source}: {found.get(source, 0)} of {wanted} rows"
        for source, wanted in sorted(evidence.rows_wanted.items())
        if found.get(source, 0) < wanted
    ]


def _audited_twice(evidence: Evidence) -> list[str]:
    wanted = evidence.rows_wanted
    return [
        f"{source}: {found} rows, wanted {wanted.get(source, 0)}"
        for source, found in sorted(evidence.rows_found.items())
        if found > wanted.get(source, 0)
    ]


def _miscounted(evidence: Evidence) -> list[str]:
    lines = []
    for partition, learned in sorted(evidence.learned.items()):
        if learned.offset != learned.end:
            lines.append(f"partition {partition}: learned up to {learned.offset}, it ends at {learned.end}")
        elif learned.state != learned.straight:
            lines.append(f"partition {partition}: another state than reading {learned.end} messages once makes")
        for user, (feast, state) in learned.tastes_in_feast.items():
            lines.append(f"partition {partition}: Feast has {feast} pairs of {user}, the state {state}")
    return lines


def answers_went_back(seen: Mapping[str, Sequence[Answer]]) -> list[str]:
    """Where the api's answer was older than one before."""
    lines = []
    for item_id, answers in seen.items():
        newest = Answer(404)
        retracted = False
        for answer in answers:
            known = (answer.item_version, answer.generation)
            if answer.status == 200 and (
                known < (newest.item_version, newest.generation)
                or (retracted and answer.item_version <= newest.item_version)
            ):
                lines.append(f"{item_id}: {answer} after {'retracted ' if retracted else ''}{newest}")
            if answer.status == 404 and newest.status != 404:
                lines.append(f"{item_id}: unknown after {newest}")
            if answer.status == 200:
                newest, retracted = answer, False
            elif answer.status == 410:
                newest, retracted = Answer(410, newest.item_version, newest.generation), True
    return lines


def _short(manifest: Manifest) -> str:
    return (
        f"version {manifest.item_version} {manifest.state} generation {manifest.generation} release {manifest.release}"
    )
