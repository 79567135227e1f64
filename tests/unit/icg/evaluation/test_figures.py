from dataclasses import replace

import numpy as np
import pytest

from icg.evaluation import compare, figures
from icg.evaluation.compare import wrong_reference
from icg.evaluation.emoji import Gallery
from icg.evaluation.panel import Measured
from icg.evaluation.relevance import Titles, blurred, real_hits
from icg.evaluation.report import Figure


def table(mean: float, seed: int, people: int = 12, concepts: int = 30) -> np.ndarray:
    return mean + np.random.default_rng(seed).normal(size=(people, concepts))


def measured(utility: np.ndarray, hit: float = 1.0, second: np.ndarray | None = None) -> Measured:
    shape = utility.shape
    hits = np.random.default_rng(0).random(shape) < hit
    features = np.random.default_rng(1).normal(size=(*shape, 4))
    return Measured(utility, second, hits, hits, hits, hits, hits, None, features, 100, 1.0)


def test_wins_are_a_half_for_the_same_and_count_ties_half() -> None:
    assert figures.wins_over(table(0, 1), table(0, 2), 200).value == pytest.approx(0.5, abs=0.06)
    assert figures.wins_over(table(0, 1), table(0, 1), 10).value == 0.5
    better = figures.wins_over(table(1.0, 1), table(0, 2), 200)
    assert better.low > 0.65
    # Φ(1/√2) = 0.76
    assert better.value == pytest.approx(0.76, abs=0.05)
    with pytest.raises(ValueError, match="shape"):
        figures.wins_over(table(0, 1), table(0, 1, concepts=3))


def test_headroom_and_what_is_kept_are_shares_of_the_way() -> None:
    low, high = table(0, 1), table(0, 1) + 2
    assert figures.headroom(low + 1.5, low, high, 50).value == pytest.approx(0.75)
    assert figures.quality_kept(low + 1.8, high, low, 50).value == pytest.approx(0.9)
    assert np.isnan(figures.headroom(low, high, low, 5).value)
    own, all_hit = np.array([[1, 0], [1, 0]], bool), np.ones((2, 2), bool)
    assert figures.kept(own, all_hit, 0.25, 5).value == pytest.approx((0.5 - 0.25) / 0.75)


def test_auc_knows_order_chance_and_ties() -> None:
    chosen = np.array([True, True, False, False])
    assert figures.auc(np.array([3.0, 2.0, 1.0, 0.0]), chosen) == 1
    assert figures.auc(np.array([0.0, 1.0, 2.0, 3.0]), chosen) == 0
    assert figures.auc(np.ones(4), chosen) == 0.5
    assert np.isnan(figures.auc(np.ones(4), np.ones(4, bool)))


def test_distances_between_sets_are_small_for_the_same_law_and_grow() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(400, 8)), rng.normal(size=(400, 8))
    far = two + 0.7
    assert abs(figures.kid(one, two)) < 60 < 300 < figures.kid(one, far)
    assert figures.fid(one, two) < 0.3
    # Moved by 0.7 in eight directions: 8 x 0.49.
    assert figures.fid(two, far) == pytest.approx(8 * 0.49)
    assert figures.fid(one, 2 * one) == pytest.approx(8, abs=1)
    assert figures.diversity(one) > 1.9 * figures.diversity(one / 2)
    assert figures.diversity(np.zeros((5, 3))) == 0
    assert np.isnan(figures.diversity(one[:1]))
    with pytest.raises(ValueError, match="at least two"):
        figures.kid(one[:1], two)


def test_a_copy_of_its_reference_is_found_also_when_a_little_changed() -> None:
    rng = np.random.default_rng(0)
    real = rng.integers(0, 255, size=(20, 64, 64, 3)).astype(np.uint8)
    drawn = np.clip(real[:6].astype(int) + rng.integers(-20, 20, size=(6, 64, 64, 3)), 0, 255).astype(np.uint8)
    assert figures.copied(drawn, real, np.arange(6)).all()
    assert not figures.copied(drawn, real, np.arange(6) + 1).any()


def test_a_figure_that_is_not_finite_never_reaches() -> None:
    assert Figure("x", float("nan"), least=0.0).reached is False
    assert Figure("x", 0.5, least=0.4, most=0.6).reached is True
    assert Figure("x", 0.7, most=0.6).reached is False
    assert Figure("x", 0.7).reached is None
    assert Figure("x", 0.5, least=0.4, most=0.6).wanted == ">= 0.4, <= 0.6"


def test_a_wrong_reference_must_lower_relevance() -> None:
    right, wrong = {"icg": measured(table(0, 1), hit=0.9)}, {"icg": measured(table(0, 1), hit=0.3)}
    assert wrong_reference(right, wrong)[0].reached
    assert not wrong_reference(wrong, right)[0].reached


def test_sharing_steps_is_judged_by_what_it_keeps_of_what_there_was() -> None:
    neutral, full = measured(table(0.0, 1)), measured(table(1.0, 1))
    half = replace(measured(table(0.0, 1) + 0.5), evaluations=60)
    rows = {row.name: row for row in compare.fast({"neutral": neutral, "icg": half, "icg_full": full}, chance=0.04)}
    assert rows["quality_kept"].value == pytest.approx(0.5)
    assert rows["quality_kept"].reached is False
    assert rows["fast_relevance_kept"].value == pytest.approx(1)
    assert rows["fast_evaluations"].value == 0.6
    other = {row.name: row.value for row in compare.rival("liked_sft", {"neutral": neutral, "liked_sft": full}, 0.04)}
    assert other["liked_sft_wins_over_neutral"] == 1.0


def test_eight_pixels_a_side_see_colours_and_places_alone(unseen: Gallery) -> None:
    pixels = unseen.pictures.pixels
    seen = blurred(pixels)
    assert seen.shape == (len(pixels), 192)
    assert np.allclose(np.linalg.norm(seen, axis=1), 1)
    # Shuffled within every patch of 8 x 8 a picture looks the same; mirrored it does not.
    patches = pixels.reshape(len(pixels), 8, 8, 8, 8, 3)
    assert np.allclose(blurred(patches[:, :, ::-1, :, ::-1].reshape(pixels.shape)), seen)
    assert not np.allclose(blurred(pixels[:, :, ::-1]), seen)
    five, first = real_hits(Titles.by_pixels(unseen), unseen, seen)
    assert 5 / len(unseen.concepts()) < first <= five <= 1
