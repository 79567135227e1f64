"""Decisions and records of one item, and a model of the item's life in every order, with replays."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.covers.commit import choose, feast_row, published, ready_event, refreshed
from workers.covers.plan import (
    Draw,
    Keep,
    PlannedCover,
    Retire,
    Wait,
    decide,
    may_write,
    nothing_to_draw,
    plan_covers,
    segments_to_draw,
    stale,
    vectors_from,
)
from workers.events import ItemPublish, ItemRefresh, Outcome, Source
from workers.records import Manifest, ManifestCover, Release, Rendition

SPACE = "5" * 64
SIZE = Rendition()
SAMPLER = {"steps": 20}
VECTORS = {"neutral": None, "a": np.ones(4, np.float32), "b": -np.ones(4, np.float32)}
Message = tuple[ItemPublish | ItemRefresh, Source]


def release(number: int) -> Release:
    # The adapter is another one in each release, so its covers are.
    return Release(number=number, parts={"base": "1" * 64, "mllm": "2" * 64, "adapter": f"{number:064d}"})


def source(offset: int, topic: str = "item-publish") -> Source:
    return Source(topic=topic, partition=0, offset=offset)


def publish(version: int = 1, title: str = "A lantern") -> ItemPublish:
    return ItemPublish(item_id="x", item_version=version, title=title)


def retract(version: int = 1) -> ItemPublish:
    return ItemPublish(item_id="x", item_version=version, action="retract")


def address(key: str) -> str:
    return f"s3://bucket/{key}"


def drawn(planned: dict[str, PlannedCover]) -> dict[str, ManifestCover]:
    """Every planned cover as if it had been drawn and passed."""
    return {
        cover.cover_id: ManifestCover(cover_id=cover.cover_id, sha256=cover.cover_id[::-1], width=64, height=64)
        for cover in planned.values()
    }


class Item:
    """One item's manifest, handled as `worker.py` does, without I/O."""

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.history: list[Manifest] = []

    def handle(self, message: Message, number: int) -> tuple[Outcome, str] | Wait:
        """Outcome and event id, or Wait."""
        event, from_ = message
        decision = decide(event, from_, self.manifest, number)
        if isinstance(decision, Wait):
            assert decision.release > number
            return decision
        if isinstance(decision, Keep):
            return self._said(decision.outcome, from_)
        if isinstance(decision, Retire):
            return self._write(decision.manifest, from_)
        refreshing = self.manifest if isinstance(event, ItemRefresh) else None
        wanted = segments_to_draw(decision.segments, ["a", "b"])
        vectors = {segment: VECTORS[segment] for segment in wanted}
        planned = plan_covers(decision.item, None, vectors, release(number), SAMPLER, SIZE)
        planned = stale(planned, refreshing, "default")
        covers = choose(planned, drawn(planned), None, refreshing, "default")
        if refreshing is not None:
            merged = refreshed(refreshing, from_, number, covers)
            return self._said(Outcome.UNCHANGED, from_) if merged is None else self._write(merged, from_)
        return self._write(published(decision.item, from_, self.manifest, number, None, covers), from_)

    def _write(self, manifest: Manifest, from_: Source) -> tuple[Outcome, str]:
        assert may_write(self.manifest, manifest)
        self.manifest = manifest
        self.history.append(manifest)
        return self._said(manifest.outcome, from_)

    def _said(self, outcome: Outcome, from_: Source) -> tuple[Outcome, str]:
        return outcome, ready_event("x", self.manifest, from_, outcome, address).event_id()


def never_back(history: Sequence[Manifest]) -> None:
    for before, after in itertools.pairwise(history):
        assert after.generation == before.generation + 1
        assert after.item_version >= before.item_version
        assert after.release >= before.release
        if before.state == "retracted":
            assert after.item_version > before.item_version
        if after.source.topic == "item-refresh":
            assert after.item_version == before.item_version
            assert after.state == "ready"


LIFE: tuple[Message, ...] = (
    (publish(1), source(0)),
    (publish(2, "A second lantern"), source(1)),
    (ItemRefresh(item_id="x", segments=("a",)), source(0, "item-refresh")),
    (retract(2), source(2)),
)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_two_publishes_a_refresh_and_a_retract_in_every_order(order: tuple[int, ...]) -> None:
    item = Item()
    outcomes: dict[int, Outcome] = {}
    for position, index in enumerate(order):
        said = item.handle(LIFE[index], number=1 + position)
        assert not isinstance(said, Wait)
        outcomes[index] = said[0]
        # Handled again at once, as after a crash before the ack: the same outcome under the same id, nothing written.
        writes = len(item.history)
        assert item.handle(LIFE[index], number=1 + position) == said
        assert len(item.history) == writes
    never_back(item.history)
    assert item.manifest is not None
    # Version 2 is the greatest, and its retract wins over it, whatever came first.
    assert (item.manifest.item_version, item.manifest.state) == (2, "retracted")
    assert outcomes[3] is Outcome.RETRACTED
    assert outcomes[1] is (Outcome.DRAWN if order.index(1) < order.index(3) else Outcome.SUPERSEDED)
    greater = min(order.index(1), order.index(3))
    assert outcomes[0] is (Outcome.DRAWN if order.index(0) < greater else Outcome.SUPERSEDED)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_manifest_never_goes_back_whatever_is_replayed(data: st.DataObject) -> None:
    events = data.draw(
        st.lists(
            st.one_of(
                st.builds(publish, st.integers(1, 3)),
                st.builds(retract, st.integers(1, 3)),
                st.builds(
                    ItemRefresh,
                    item_id=st.just("x"),
                    item_version=st.none() | st.integers(1, 3),
                    segments=st.none() | st.just(("b",)) | st.just(("gone", "neutral")),
                    release=st.none() | st.integers(1, 4),
                ),
            ),
            min_size=1,
            max_size=8,
        )
    )
    messages = [(event, source(number, event.topic)) for number, event in enumerate(events)]
    item = Item()
    for index in data.draw(st.lists(st.integers(0, len(messages) - 1), max_size=24), label="deliveries"):
        number = data.draw(st.integers(1, 4), label="release of the worker that has it")
        existed, writes = item.manifest is not None, len(item.history)
        said = item.handle(messages[index], number)
        if isinstance(said, Wait):
            assert len(item.history) == writes
            number = said.release
            said = item.handle(messages[index], number)
        if isinstance(messages[index][0], ItemRefresh) and not existed:
            assert item.manifest is None
        writes = len(item.history)
        assert item.handle(messages[index], number) == said
        assert len(item.history) == writes
        if item.manifest is not None and item.manifest.state == "ready":
            assert "neutral" in item.manifest.covers
            ids = [by["default"].cover_id for by in item.manifest.covers.values() if by["default"].fallback is None]
            assert len(ids) == len(set(ids))
    never_back(item.history)


def test_a_refresh_merges_only_the_segments_that_it_names() -> None:
    item = Item()
    item.handle(LIFE[0], 1)
    before = item.manifest
    assert before is not None
    outcome = item.handle((ItemRefresh(item_id="x", segments=("a",)), source(0, "item-refresh")), 2)
    after = item.manifest
    assert after is not None
    assert not isinstance(outcome, Wait)
    assert outcome[0] is Outcome.DRAWN
    assert after.covers["a"] != before.covers["a"]
    assert (after.covers["b"], after.covers["neutral"]) == (before.covers["b"], before.covers["neutral"])
    assert (after.published_by, after.item_version, after.release) == (before.published_by, before.item_version, 2)


def test_a_refresh_of_what_is_there_changes_nothing() -> None:
    item = Item()
    item.handle(LIFE[0], 3)
    outcome = item.handle((ItemRefresh(item_id="x"), source(0, "item-refresh")), 3)
    assert not isinstance(outcome, Wait)
    assert outcome[0] is Outcome.UNCHANGED
    assert len(item.history) == 1


def test_the_same_version_from_another_message_changes_nothing() -> None:
    item = Item()
    item.handle((publish(1), source(0)), 1)
    said = item.handle((publish(1, "Other words"), source(9)), 2)
    assert not isinstance(said, Wait)
    assert said[0] is Outcome.UNCHANGED


def test_a_worker_behind_the_manifest_waits_instead_of_taking_it_back() -> None:
    item = Item()
    item.handle((publish(1), source(0)), 5)
    assert item.handle((publish(2), source(1)), 4) == Wait(5)
    assert item.handle((ItemRefresh(item_id="x"), source(0, "item-refresh")), 4) == Wait(5)
    assert item.handle((ItemRefresh(item_id="x", release=7), source(1, "item-refresh")), 5) == Wait(7)


def test_a_retract_of_an_item_that_nobody_published_stays_as_a_tombstone() -> None:
    item = Item()
    item.handle((retract(3), source(0)), 1)
    said = item.handle((publish(3), source(1)), 1)
    assert not isinstance(said, Wait)
    assert said[0] is Outcome.SUPERSEDED
    item.handle((publish(4), source(2)), 1)
    assert item.manifest is not None
    assert item.manifest.state == "ready"


def test_may_write_refuses_what_goes_back() -> None:
    item = Item()
    item.handle((publish(2), source(0)), 5)
    before = item.manifest
    assert before is not None
    later = before.model_copy(update={"generation": 2})
    assert may_write(before, later)
    assert not may_write(before, later.model_copy(update={"item_version": 1}))
    assert not may_write(before, later.model_copy(update={"release": 4}))
    assert not may_write(before, before)
    assert not may_write(before.model_copy(update={"state": "retracted"}), later)


def test_neutral_is_always_drawn_first_and_unknown_segments_are_not() -> None:
    assert segments_to_draw(None, ["a", "b"]) == ["neutral", "a", "b"]
    assert segments_to_draw(None, []) == ["neutral"]
    assert segments_to_draw(("b", "gone"), ["a", "b"]) == ["b"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({}, "missing"),
        ({"vector": None, "space": None}, "missing"),
        ({"vector": [1.0] * 4, "space": "6" * 64}, "space"),
        ({"vector": [1.0] * 3, "space": SPACE}, "dimension"),
        ({"vector": [1.0, float("nan"), 0.0, 0.0], "space": SPACE}, "not finite"),
    ],
)
def test_a_segment_without_a_usable_vector_is_drawn_neutral_and_reported(row: dict[str, object], problem: str) -> None:
    found = vectors_from(["neutral", "a", "b"], {"a": row, "b": {"vector": [1.0] * 4, "space": SPACE}}, SPACE, 4)
    assert found.problems == {"a": problem}
    assert found.by_segment["a"] is None
    item = Item()
    item.handle(LIFE[0], 1)
    decision = decide(publish(2), source(1), None, 1)
    assert isinstance(decision, Draw)
    planned = plan_covers(decision.item, None, found.by_segment, release(1), SAMPLER, SIZE)
    chosen = choose(planned, drawn(planned), None, None, "default")
    assert chosen["a"]["default"].fallback == "neutral"
    assert chosen["a"]["default"].cover_id == chosen["neutral"]["default"].cover_id
    assert chosen["b"]["default"].fallback is None


def _planned() -> dict[str, PlannedCover]:
    decision = decide(publish(1), source(0), None, 1)
    assert isinstance(decision, Draw)
    return plan_covers(decision.item, None, VECTORS, release(1), SAMPLER, SIZE)


def test_a_refused_cover_falls_back_to_neutral_then_reference_then_nothing() -> None:
    planned = _planned()
    passed = drawn(planned)
    reference = ManifestCover(cover_id="e" * 64, sha256="f" * 64, width=64, height=64)
    without_a = {key: cover for key, cover in passed.items() if key != planned["a"].cover_id}
    chosen = choose(planned, without_a, None, None, "default")
    assert (chosen["a"]["default"].fallback, chosen["b"]["default"].fallback) == ("neutral", None)
    only_b = {planned["b"].cover_id: passed[planned["b"].cover_id]}
    chosen = choose(planned, only_b, reference, None, "default")
    assert {segment: by["default"].fallback for segment, by in chosen.items()} == {
        "neutral": "reference",
        "a": "reference",
        "b": None,
    }
    assert set(choose(planned, only_b, None, None, "default")) == {"b"}


def test_a_refresh_without_neutral_falls_back_to_the_one_in_the_manifest() -> None:
    item = Item()
    item.handle(LIFE[0], 1)
    before = item.manifest
    assert before is not None
    planned = {"a": _planned()["a"]}
    chosen = choose(planned, {}, None, before, "default")
    assert chosen["a"]["default"].cover_id == before.covers["neutral"]["default"].cover_id
    assert chosen["a"]["default"].fallback == "neutral"


def test_equal_vectors_share_one_cover() -> None:
    decision = decide(publish(1), source(0), None, 1)
    assert isinstance(decision, Draw)
    vectors = {"neutral": None, "a": np.ones(4, np.float32), "twin": np.ones(4, np.float32)}
    planned = plan_covers(decision.item, None, vectors, release(1), SAMPLER, SIZE)
    assert planned["a"] is planned["twin"]
    assert planned["neutral"].cover_id != planned["a"].cover_id


def test_what_decides_the_pixels_decides_the_id_and_nothing_else_does() -> None:
    decision = decide(publish(1), source(0), None, 1)
    other_message = decide(publish(1), source(5), None, 1)
    assert isinstance(decision, Draw)
    assert isinstance(other_message, Draw)
    base = _planned()["a"].cover_id
    assert plan_covers(other_message.item, None, VECTORS, release(1), SAMPLER, SIZE)["a"].cover_id == base
    for changed in (
        plan_covers(decision.item, "a" * 64, VECTORS, release(1), SAMPLER, SIZE),
        plan_covers(decision.item, None, VECTORS, release(2), SAMPLER, SIZE),
        plan_covers(decision.item, None, VECTORS, release(1), {"steps": 4}, SIZE),
        plan_covers(decision.item, None, VECTORS, release(1), SAMPLER, Rendition(width=128)),
    ):
        assert changed["a"].cover_id != base


def test_the_feast_row_and_the_event_say_what_the_manifest_says() -> None:
    item = Item()
    item.handle(LIFE[0], 1)
    assert item.manifest is not None
    row = feast_row(item.manifest, "default")
    event = ready_event("x", item.manifest, source(0), Outcome.DRAWN, address)
    assert row["segment_ids"] == ["neutral", "a", "b"] == [cover.segment_id for cover in event.covers]
    assert row["cover_ids"] == [cover.cover_id for cover in event.covers]
    assert event.covers[0].address == f"s3://bucket/covers/x/{event.covers[0].cover_id}.webp"
    assert (event.generation, event.release, event.time) == (1, 1, item.manifest.time)
    item.handle((retract(1), source(1)), 1)
    assert item.manifest is not None
    assert feast_row(item.manifest, "default")["cover_ids"] == []
    assert ready_event("x", item.manifest, source(1), Outcome.RETRACTED, address).action == "retired"


def test_an_event_that_draws_nothing_says_why() -> None:
    item = Item()

    def why(event: ItemPublish | ItemRefresh) -> str | None:
        decision = decide(event, source(9, event.topic), item.manifest, 1)
        assert isinstance(decision, Keep)
        return decision.reason

    assert why(ItemRefresh(item_id="x")) == "no such item is published"
    item.handle((publish(2), source(0)), 1)
    assert why(publish(1)) == "version 1 is older than version 2"
    assert why(publish(2)) == "version 2 is published already"
    assert why(publish(2, "Another")) == "version 2 is published already, with another title; raise the version"
    assert why(ItemRefresh(item_id="x", item_version=3)) == "version 3 is not the published one, 2"
    item.handle((retract(2), source(1)), 1)
    assert why(publish(2)) == "version 2 is retracted; a greater one brings it back"
    assert why(retract(2)) == "version 2 is retracted already"
    assert why(ItemRefresh(item_id="x")) == "the item is retracted"


def test_a_refresh_that_changes_no_cover_says_why() -> None:
    assert nothing_to_draw(None, ["a"], 3) == "its covers are those of release 3 already"
    assert nothing_to_draw(["a", "neutral"], ["a"], 3) == "its covers are those of release 3 already"
    assert nothing_to_draw(["a", "gone"], ["a"], 3) == "release 3 has no segment gone"
    many = [f"s{n}" for n in range(7)]
    assert nothing_to_draw(many, [], 3) == "release 3 has no segment s0, s1, s2, s3, s4 and 2 more"


def test_an_item_never_committed_is_reported_without_a_manifest() -> None:
    event = ready_event("x", None, source(3, "item-refresh"), Outcome.UNCHANGED, address)
    assert (event.generation, event.action, event.covers) == (0, "retired", ())
