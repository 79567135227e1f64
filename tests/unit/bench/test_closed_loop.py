"""The closed loop at a tiny size: one audience for all arms, a learner that is told what a platform would tell it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import closed_loop, closed_pool
from bench.closed_arms import ARMS, START, Log, Loop, Setup, Stack
from icg.evaluation.attributes import NAMES
from icg.evaluation.audience import Readers
from icg.evaluation.emoji import Gallery
from icg.preference import Head
from icg.tiny.data import FAMILY, Pictures
from workers.settings import Preferences

SETUP = Setup(pages=60, page_size=4, batch=10, learns_from=20, preferences=Preferences(release_pairs=20))


def drawn(concepts: range) -> Gallery:
    """Attributes without pictures: a perfect encoder looks at nothing else."""
    rows = [(concept, style) for concept in concepts for style in FAMILY]
    rng = np.random.default_rng(concepts.start)
    pictures = Pictures(
        np.zeros((len(rows), 1, 1, 3), np.uint8),
        np.array([f"c{concept}" for concept, _ in rows]),
        np.array([f"thing {concept}" for concept, _ in rows]),
        np.array([style for _, style in rows]),
    )
    return Gallery(pictures, rng.normal(size=(len(rows), len(NAMES))), np.array([concept % 9 for concept, _ in rows]))


@pytest.fixture(scope="module")
def world() -> closed_pool.Pictures:
    return closed_loop.pictures(drawn(range(20)), drawn(range(100, 112)), None, 0)


@pytest.fixture
def loop(world: closed_pool.Pictures) -> Loop:
    head = Head.start(closed_loop.SPACE, closed_pool.DIMENSION)
    crowd = world.crowd(30, 1, head)
    segments, belongs = closed_pool.segments_of(crowd.vectors, groups=3, k_min=5)
    covers = closed_pool.planted(world, closed_pool.Perfect(world.within), head, segments)
    return Loop(Stack(covers, crowd.vectors, head, SETUP.preferences), Readers(crowd.people), belongs, SETUP)


def test_a_persons_vector_says_what_they_choose(world: closed_pool.Pictures, loop: Loop) -> None:
    assert loop.order(0, learned=False) > 0.6
    assert len({each.neutral for each in loop.stack.covers_of}) > 1
    assert all(each.shared[0] == each.neutral and len(set(each.shared)) == 8 for each in loop.stack.covers_of)


def again(loop: Loop, **changes: object) -> Loop:
    stack = Stack(loop.stack.covers_of, loop.stack.vectors, loop.stack.first, SETUP.preferences)
    return Loop(stack, loop.readers, loop.belongs, replace(SETUP, **changes))


def test_arms_share_readers_items_and_noise(loop: Loop) -> None:
    log = loop.run(bins=2)
    assert log.shows.sum(axis=(1, 2, 3)).tolist() == [60 * 4] * len(ARMS)
    assert (log.shows == log.shows[0]).all()
    assert (log.clicks <= log.shows).all()
    twins = again(loop, arms=("neutral", "neutral", "oracle")).run(bins=2)
    assert (twins.clicks[0] == twins.clicks[1]).all()
    assert twins.clicks[0].sum() < twins.clicks[2].sum()


def test_the_learner_reads_one_arm_a_page_and_never_the_oracle(loop: Loop) -> None:
    log = loop.run(bins=2)
    counts = loop.stack.learner.window.counts
    assert counts.impressions == 60 * 4 * (len(ARMS) - 1) / len(ARMS)
    assert 0 < counts.answers < log.clicks[:-1].sum()
    assert counts.late == counts.mismatched == counts.unjoined == loop.stack.learner.bad_tokens == 0
    alone = again(loop, arms=("random", "oracle"))
    alone.run(bins=2)
    assert alone.stack.learner.window.counts.impressions == 60 * 4 / 2


def test_before_learning_is_served_personal_is_frozen(loop: Loop) -> None:
    loop.stack.released = Head.start(closed_loop.SPACE, closed_pool.DIMENSION)
    loop.stack.released.bias += 5 * loop.stack.covers_of[0].embeddings[3]
    day = START.date()
    items = list(range(4))
    early = {arm: [loop._choose(arm, p, items, 19, day)[0] for p in range(30)] for arm in ("personal", "frozen")}
    late = {arm: [loop._choose(arm, p, items, 20, day)[0] for p in range(30)] for arm in ("personal", "frozen")}
    assert early["personal"] == early["frozen"] == late["frozen"]
    assert late["personal"] != late["frozen"]


def test_figures_of_a_log_whose_answer_is_known() -> None:
    """Neutral clicks one in ten; personal as often at first and twice as often at last; frozen as neutral."""
    shows = np.full((len(ARMS), closed_loop.BINS, 20, 10), 10, np.int32)
    clicks = np.ones_like(shows)
    clicks[ARMS.index("personal"), closed_loop.BINS // 2 :] = 2
    clicks[ARMS.index("oracle")] = 4
    order = {"first": 0.6, "last_frozen": 0.5, "last": 0.7}
    found = {f.name: f for f in closed_loop.figures(Log(clicks, shows, [1] * closed_loop.BINS, 0, order), 0.5)}
    assert found["lift_over_neutral_first"].value == pytest.approx(0)
    assert found["lift_over_neutral_last"].value == pytest.approx(1)
    assert found["lift_over_best_of_8_low"].value == pytest.approx(1)
    assert found["oracle_over_neutral"].value == pytest.approx(3)
    assert found["rise"].value == pytest.approx(1)
    assert found["rise_low"].reached
    assert found["frozen_rise_low"].reached
    assert found["a_a_low"].reached
    assert found["impressions_an_arm"].reached
    swapped = clicks[[ARMS.index(arm) for arm in ("personal", "random", "best_of_8", "neutral", "personal", "oracle")]]
    worse = {f.name: f for f in closed_loop.figures(Log(swapped, shows, [1] * closed_loop.BINS, 0, order), 0.5)}
    assert worse["lift_over_neutral_last_high"].reached is False
    assert worse["rise_low"].reached is False


def test_a_pool_is_kept_and_known_by_what_decided_it(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    signed = closed_pool.signature(tmp_path / "model", loop.stack.vectors)
    closed_pool.save(tmp_path / "pool.npz", signed, loop.stack.covers_of)
    kept = closed_pool.load(tmp_path / "pool.npz", signed)
    for one, other in zip(kept, loop.stack.covers_of, strict=True):
        assert (one.title, one.topic, one.neutral, one.segments, one.shared) == (
            other.title, other.topic, other.neutral, other.segments, other.shared,
        )  # fmt: skip
        assert (one.pictures == other.pictures).all()
        assert (one.embeddings == other.embeddings).all()
    (tmp_path / "model" / "config.json").write_text('{"another": 1}')
    with pytest.raises(ValueError, match="another model"):
        closed_pool.load(tmp_path / "pool.npz", closed_pool.signature(tmp_path / "model", loop.stack.vectors))
