"""Groups of users and the names that they keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.clustering import Groups, Vectors, assignment, cosines, kmeans, merge_small, named
from workers.records import Segment


def blobs(sizes: list[int], seed: int = 0, spread: float = 0.3, dimension: int = 16) -> Vectors:
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.normal(size=(dimension, len(sizes))))
    return (np.repeat(directions.T, sizes, 0) + spread * rng.normal(size=(sum(sizes), dimension)) / 4).astype(
        np.float32
    )


def segments(groups: Groups, before: list[Segment] | None = None, origin: str = "first") -> list[Segment]:
    return named(groups, before or [], origin)


def test_groups_that_are_there_are_found_and_are_the_same_again() -> None:
    vectors = blobs([40, 30, 20])
    groups = kmeans(vectors, 3, seed=1)
    assert sorted(groups.sizes) == [20, 30, 40]
    for start, end in ((0, 40), (40, 70), (70, 90)):
        assert len(set(groups.labels[start:end])) == 1
        mean = vectors[start:end].mean(0)
        assert np.allclose(groups.centres[groups.labels[start]], mean, atol=1e-6)
    again = kmeans(vectors, 3, seed=1)
    assert (again.labels == groups.labels).all()
    assert (again.centres == groups.centres).all()


@pytest.mark.parametrize("vectors", [np.ones((5, 4)), np.zeros((1, 4)), np.eye(3)], ids=["equal", "one", "few"])
def test_fewer_groups_where_there_are_fewer_vectors(vectors: Vectors) -> None:
    groups = kmeans(vectors.astype(np.float32), 8, seed=0)
    assert len(groups.centres) == len(np.unique(vectors, axis=0))
    assert (groups.sizes > 0).all()


def test_small_groups_merge_into_the_nearest() -> None:
    vectors = np.array([[0, 1]] * 30 + [[0.2, 1]] * 3 + [[1, 0]] * 25 + [[1, 0.1]] * 2, np.float32)
    groups = merge_small(vectors, kmeans(vectors, 4, seed=0), least=20)
    assert sorted(groups.sizes) == [27, 33]
    assert len(set(groups.labels[:33])) == 1
    assert np.allclose(groups.centres[groups.labels[0]], vectors[:33].mean(0))


def test_one_group_is_left_even_if_it_is_small() -> None:
    vectors = blobs([3, 2])
    assert merge_small(vectors, kmeans(vectors, 2, seed=0), least=20).sizes.tolist() == [5]


def test_ids_are_kept_by_matching_and_all_else_is_new() -> None:
    vectors = blobs([40, 30, 20])
    first = segments(kmeans(vectors, 3, seed=0))
    assert len({each.segment_id for each in first}) == 3
    assert all(each.parent is None for each in first)

    # The same people a little moved, in another order; one group turned into something else.
    moved = vectors.copy()
    moved[70:] = blobs([1] * 8, seed=9)[7] * 2
    shuffled = moved[np.random.default_rng(3).permutation(90)]
    second = segments(kmeans(shuffled, 3, seed=5), first, "second")
    by_users = {each.users: each for each in first}
    for each in second:
        if each.users == 20:
            assert each.segment_id not in {old.segment_id for old in first}
            assert each.parent in {old.segment_id for old in first}
        else:
            assert each.segment_id == by_users[each.users].segment_id


def test_matching_is_one_to_one() -> None:
    old = [Segment(segment_id="s-old", vector=[1.0, 0.0])]
    close = np.array([[1, 0.1], [1, 0.02]], np.float32)  # both over 0.9; the nearer one keeps the id
    made = named(Groups(close, np.array([0, 1])), old, "x")
    assert made[1].segment_id == "s-old"
    assert made[0].segment_id != "s-old"
    assert made[0].parent == "s-old"


@pytest.mark.parametrize(("cosine", "kept"), [(0.91, True), (0.89, False)])
def test_the_bound_of_sameness(cosine: float, kept: bool) -> None:
    old = [Segment(segment_id="s-old", parent="s-before", vector=[1.0, 0.0])]
    new = np.array([[cosine, (1 - cosine**2) ** 0.5]], np.float32) * 3
    (made,) = named(Groups(new, np.array([0])), old, "x")
    assert (made.segment_id == "s-old") is kept
    assert made.parent == ("s-before" if kept else "s-old")


@pytest.mark.parametrize(("moved", "still"), [(0.09, True), (0.11, False)])
def test_a_centroid_that_hardly_moved_keeps_its_vector_until_the_steps_add_up(moved: float, still: bool) -> None:
    old = [Segment(segment_id="s-old", vector=[2.0, 0.0])]
    new = np.array([[2.0, 2 * moved]], np.float32)
    (made,) = named(Groups(new, np.array([0, 0])), old, "x")
    assert made.segment_id == "s-old"
    assert (made.vector == [2.0, 0.0]) is still
    (next_,) = named(Groups(2 * new - [[2.0, 0]], np.array([0])), [made], "y")
    assert next_.vector != [2.0, 0.0]


def test_an_id_that_went_away_does_not_come_back_for_another_set() -> None:
    groups = kmeans(blobs([30, 30]), 2, seed=0)
    seen = {each.segment_id for each in segments(groups, origin="space a\nrevision 1")}
    after = {each.segment_id for each in segments(groups, origin="space a\nrevision 2")}
    assert not seen & after


def test_a_zero_vector_is_like_nothing() -> None:
    assert cosines(np.zeros((1, 3), np.float32), np.ones((2, 3), np.float32)).tolist() == [[0.0, 0.0]]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_the_assignment_is_the_best_there_is(rows: int, columns: int, seed: int) -> None:
    import itertools

    gain = np.random.default_rng(seed).random((rows, columns)).round(2)
    found = assignment(gain)
    assert len(found) == len(set(found.values())) == min(rows, columns)
    wide = gain if rows <= columns else gain.T
    best = max(
        sum(wide[row, column] for row, column in enumerate(order))
        for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
    )
    assert sum(gain[pair] for pair in found.items()) == pytest.approx(best)
