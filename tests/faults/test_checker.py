"""The checker on a few records by hand: each kind of damage is counted, once, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.checker import Answer, Evidence, Learned, Source, Twin, check
from tests.faults.traffic import Wanted
from workers.events import CoverReady, Outcome
from workers.events import Source as EventSource
from workers.records import Manifest, ManifestCover

COVER, OTHER = "a" * 64, "b" * 64
FIRST: Source = ("item-publish", 0, 0)
SECOND: Source = ("item-publish", 0, 1)
NONSENSE: Source = ("item-publish", 0, 2)


def manifest(version: int, generation: int, state: str = "ready", release: int = 1) -> Manifest:
    source = EventSource(topic="item-publish", partition=0, offset=generation - 1)
    cover = ManifestCover(cover_id=COVER, sha256=COVER, width=32, height=32)
    return Manifest(
        item_id="x",
        item_version=version,
        state=state,  # type: ignore[arg-type]
        generation=generation,
        release=release,
        published_by=source,
        source=source,
        covers={"neutral": {"default": cover}} if state == "ready" else {},
    )


def shows(of: Manifest, cover_id: str, fallback: str | None = None) -> Manifest:
    """The same with another cover."""
    cover = ManifestCover(cover_id=cover_id, sha256=cover_id, width=32, height=32, fallback=fallback)
    return of.model_copy(update={"covers": {"neutral": {"default": cover}}})


def ready(source: Source, generation: int, release: int = 1) -> CoverReady:
    topic, partition, offset = source
    return CoverReady(
        item_id="x",
        item_version=generation,
        action="ready",
        outcome=Outcome.DRAWN,
        source=EventSource(topic=topic, partition=partition, offset=offset),
        release=release,
        generation=generation,
        time="2026-01-01T00:00:00Z",
    )


def good() -> Evidence:
    """One item in two versions, and an event that is none."""
    return Evidence(
        valid={FIRST, SECOND},
        nonsense={NONSENSE},
        ready={FIRST: [ready(FIRST, 1)], SECOND: [ready(SECOND, 2), ready(SECOND, 2)]},
        dead={NONSENSE: [b"?"]},
        wanted={"x": Wanted(version=2)},
        manifests={"x": manifest(2, 2)},
        objects={COVER: COVER},
        twin=Twin({COVER: COVER}, {"x": manifest(2, 3, release=2)}),
        seen={"x": [manifest(1, 1), manifest(2, 2)]},
        rows={"x": (2, "ready")},
        rows_wanted={FIRST: 1, SECOND: 2},
        rows_found={FIRST: 1, SECOND: 2},
        learned={0: Learned(end=9, offset=9, state="s", straight="s")},
        answers={"x": [Answer(404), Answer(200, 1, 1), Answer(200, 2, 2), Answer(410), Answer(200, 3, 4)]},
    )


def test_nothing_is_wrong_with_what_is_right() -> None:
    assert check(good()) == {name: [] for name in check(Evidence())}


@pytest.mark.parametrize(
    ("finding", "damage"),
    [
        ("lost", lambda e: replace(e, ready={FIRST: [ready(FIRST, 1), ready(FIRST, 2)]})),
        ("lost", lambda e: replace(e, dead={**e.dead, SECOND: [b"an outage"]})),
        ("lost", lambda e: replace(e, dead={})),
        (
            "duplicated",
            lambda e: replace(e, ready={**e.ready, SECOND: [ready(SECOND, 2), ready(SECOND, 2, release=2)]}),
        ),
        ("lost", lambda e: replace(e, ready={**e.ready, SECOND: e.ready[FIRST]})),
        ("wrong_bytes", lambda e: replace(e, objects={}, twin=Twin())),
        ("wrong_bytes", lambda e: replace(e, twin=Twin({COVER: OTHER}))),
        ("wrong_bytes", lambda e: replace(e, twin=Twin({}, {"x": shows(manifest(2, 3), OTHER)}))),
        ("wrong_bytes", lambda e: replace(e, twin=Twin({}, {"x": shows(manifest(2, 3), COVER, "neutral")}))),
        (
            "wrong_bytes",
            lambda e: replace(
                e,
                manifests={"x": manifest(2, 2).model_copy(update={"covers": {}})},
                twin=Twin({}, {"x": manifest(2, 3)}),
            ),
        ),
        ("stale", lambda e: replace(e, seen={"x": [manifest(2, 2), manifest(1, 3)]})),
        ("stale", lambda e: replace(e, seen={"x": [manifest(2, 2, release=2), manifest(2, 3, release=1)]})),
        ("stale", lambda e: replace(e, seen={"x": [manifest(2, 1, "retracted"), manifest(2, 2)]})),
        ("stale", lambda e: replace(e, wanted={"x": Wanted(version=2, retracted=True)})),
        ("stale", lambda e: replace(e, wanted={"x": Wanted(version=2, release=2)})),
        ("stale", lambda e: replace(e, manifests={})),
        ("stale", lambda e: replace(e, rows={"x": (1, "ready")})),
        ("unaudited", lambda e: replace(e, rows_found={FIRST: 1, SECOND: 1})),
        ("audited_twice", lambda e: replace(e, rows_found={FIRST: 2, SECOND: 2})),
        ("miscounted", lambda e: replace(e, learned={0: Learned(end=9, offset=8, state="s", straight="s")})),
        ("miscounted", lambda e: replace(e, learned={0: Learned(end=9, offset=9, state="s", straight="t")})),
        ("miscounted", lambda e: replace(e, learned={0: Learned(9, 9, "s", "s", {"u": (3, 2)})})),
        ("answers_back", lambda e: replace(e, answers={"x": [Answer(200, 2, 2), Answer(200, 1, 1)]})),
        ("answers_back", lambda e: replace(e, answers={"x": [Answer(200, 2, 2), Answer(410), Answer(200, 2, 2)]})),
        ("answers_back", lambda e: replace(e, answers={"x": [Answer(200, 2, 2), Answer(404)]})),
    ],
)
def test_each_damage_is_counted_and_as_what_it_is(finding: str, damage: Callable[[Evidence], Evidence]) -> None:
    findings = check(damage(good()))
    assert {name for name, lines in findings.items() if lines} == {finding}
    assert len(findings[finding]) == 1
