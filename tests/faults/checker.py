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
    twin: Mapping[str, str] = field(default_factory=dict)
    """As `objects`, of the undisturbed run."""
    seen: Mapping[str, Sequence[Manifest]] = field(default_factory=dict)
    """Each item's manifests in the order in which a watcher saw them."""
    rows: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Generation and state of each item in Feast."""


Findings = dict[str, list[str]]


def check(evidence: Evidence) -> Findings:
    """What is lost, duplicated, wrong_bytes and stale, a line each."""
    return {
        "lost": _lost(evidence),
        "duplicated": _duplicated(evidence),
        "wrong_bytes": _wrong_bytes(evidence),
        "stale": _stale(evidence),
    }


def _lost(evidence: Evidence) -> list[str]:
    lines = [
        f"{source}: no outcome" for source in sorted(evidence.valid - evidence.ready.keys() - evidence.dead.keys())
    ]
    lines += [f"{source}: valid, and dead-lettered" for source in sorted(evidence.valid & evidence.dead.keys())]
    lines += [f"{source}: nonsense, and no dead letter" for source in sorted(evidence.nonsense - evidence.dead.keys())]
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
    for cover_id, sha in evidence.twin.items():
        if evidence.objects.get(cover_id, sha) != sha:
            lines.append(f"{cover_id}: other bytes than in the undisturbed run")
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


def _short(manifest: Manifest) -> str:
    return (
        f"version {manifest.item_version} {manifest.state} generation {manifest.generation} release {manifest.release}"
    )
