"""Groups of users from their vectors, and names that survive a rebuild. numpy only, no I/O, no clock.

Written out instead of taken from scikit-learn, so that a recommender's install stays small and the same vectors and
seed give the same groups whatever is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.records import Segment, sha256

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]

SAME = 0.9
"""Cosine of two centroids from which on they are one segment, moved."""
STILL = 0.1
"""A segment whose centroid moved by no more than this share of its length keeps its vector, and so its covers: k-means
moves every centroid a little at every rebuild. A guess: by how much a vector has to move before its covers look
another is not measured. What is kept is compared with the next centroid again, so slow steps add up."""
_CHUNK = 65_536


@dataclass(frozen=True)
class Groups:
    """centres [k, d], one label in 0..k-1 a user [n]."""

    centres: Vectors
    labels: Labels

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.bincount(self.labels, minlength=len(self.centres))


def kmeans(vectors: Vectors, count: int, seed: int, tries: int = 8, rounds: int = 100) -> Groups:
    """Lloyd's algorithm from k-means++ starts (Arthur and Vassilvitskii, 2007), the best of `tries`.

    Args:
        vectors: [n, d], n >= 1.
        count: groups wanted; fewer come out where fewer distinct vectors are.
    """
    best: Groups | None = None
    least = np.inf
    for attempt in range(tries):
        groups = _lloyd(vectors, _spread(vectors, count, np.random.default_rng([seed, attempt])), rounds)
        error = float(np.square(vectors - groups.centres[groups.labels], dtype=np.float64).sum())
        if error < least * (1 - 1e-9):
            best, least = groups, error
    assert best is not None
    return best


def _spread(vectors: Vectors, count: int, rng: np.random.Generator) -> Vectors:
    chosen = [int(rng.integers(len(vectors)))]
    distance = _distances(vectors, vectors[chosen])[:, 0]
    while len(chosen) < count and distance.max() > 1e-12:
        chosen.append(int(np.searchsorted(np.cumsum(distance), rng.random() * distance.sum(), side="right")))
        chosen[-1] = min(chosen[-1], len(vectors) - 1)
        distance = np.minimum(distance, _distances(vectors, vectors[chosen[-1:]])[:, 0])
    return vectors[chosen]


def _lloyd(vectors: Vectors, centres: Vectors, rounds: int) -> Groups:
    labels = nearest(vectors, centres)
    for _ in range(rounds):
        centres, labels = _centres(vectors, labels)
        moved = nearest(vectors, centres)
        if (moved == labels).all():
            break
        labels = moved
    return Groups(*_centres(vectors, labels))


def _centres(vectors: Vectors, labels: Labels) -> tuple[Vectors, Labels]:
    """Means of the groups that have members, and labels that count only those."""
    kept, labels = np.unique(labels, return_inverse=True)
    means = [vectors[labels == label].mean(0, dtype=np.float64) for label in range(len(kept))]
    return np.array(means, np.float32), labels.astype(np.int64)


def _distances(vectors: Vectors, centres: Vectors) -> NDArray[np.float64]:
    """Squared, [n, k], never negative."""
    wide = vectors.astype(np.float64)
    cross = 2 * wide @ centres.T.astype(np.float64)
    squares = np.square(wide).sum(1)[:, None] - cross + np.square(centres).sum(1)[None]
    return np.asarray(np.maximum(squares, 0))


def nearest(vectors: Vectors, centres: Vectors) -> Labels:
    """Which of the centres [k, d] each vector [n, d] is closest to."""
    parts = [_distances(vectors[at : at + _CHUNK], centres).argmin(1) for at in range(0, len(vectors), _CHUNK)]
    return np.concatenate(parts).astype(np.int64)


def merge_small(vectors: Vectors, groups: Groups, least: int) -> Groups:
    """Groups under `least` members go into the nearest other, the smallest first; one group may stay small alone."""
    while len(groups.centres) > 1:
        small = int(groups.sizes.argmin())
        if groups.sizes[small] >= least:
            break
        distance = _distances(groups.centres[small : small + 1], groups.centres)[0]
        distance[small] = np.inf
        labels = np.where(groups.labels == small, int(distance.argmin()), groups.labels)
        groups = Groups(*_centres(vectors, labels))
    return groups


def named(groups: Groups, before: Sequence[Segment], origin: str, same: float = SAME) -> list[Segment]:
    """Segments for the groups, in order.

    A centroid that is matched one to one with one of before, at a cosine of `same` or more, keeps that id and its
    parent, and the vector too where it moved by less than `STILL`. All else is a new id, with the nearest segment of
    before as parent. A new id hashes the vector and where it comes from, so that none is ever given twice, also not
    after a rollback.

    Args:
        before: the set that is being replaced, in the same space; empty if there is none.
        origin: what this set is made from (the revision of the set before, the space).
    """
    alike = cosines(groups.centres, np.array([each.vector for each in before], np.float32)) if before else None
    matched = assignment(np.where(alike >= same, alike, 0.0)) if alike is not None else {}
    taken = {each.segment_id for each in before}
    segments = []
    for index, (centre, users) in enumerate(zip(groups.centres, groups.sizes, strict=True)):
        if alike is not None and index in matched and alike[index, matched[index]] >= same:
            old = before[matched[index]]
            segment_id, parent = old.segment_id, old.parent
            was = np.array(old.vector, np.float32)
            if np.linalg.norm(centre - was) <= STILL * np.linalg.norm(was):
                centre = was
        else:
            digits = sha256(origin.encode() + b"\n" + centre.astype("<f4").tobytes())
            segment_id = next(name for at in range(56) if (name := f"s-{digits[at : at + 8]}") not in taken)
            parent = before[int(alike[index].argmax())].segment_id if alike is not None else None
        taken.add(segment_id)
        segments.append(
            Segment(segment_id=segment_id, parent=parent, users=int(users), vector=[float(x) for x in centre])
        )
    return segments


def cosines(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """[n, d] and [m, d] to [n, m]; 0 for a vector of zeros."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    scale = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)[None]
    return np.asarray(np.divide(left @ right.T, scale, out=np.zeros((len(a), len(b))), where=scale > 0))


def assignment(gain: NDArray[np.float64]) -> dict[int, int]:
    """The one-to-one matching of rows and columns with the greatest sum (the Hungarian method with potentials, O(n²m)).

    Returns:
        row -> column, for as many as the smaller side has.
    """
    if gain.shape[0] > gain.shape[1]:
        return {row: column for column, row in assignment(gain.T).items()}
    rows, columns = gain.shape
    cost = -gain
    u, v = np.zeros(rows + 1), np.zeros(columns + 1)
    row_of = np.zeros(columns + 1, int)  # 1-based; column 0 holds the row being placed
    for row in range(1, rows + 1):
        row_of[0], column = row, 0
        least, back = np.full(columns + 1, np.inf), np.zeros(columns + 1, int)
        used = np.zeros(columns + 1, bool)
        while row_of[column]:
            used[column] = True
            current = row_of[column]
            free = ~used[1:]
            reduced = cost[current - 1] - u[current] - v[1:]
            better = free & (reduced < least[1:])
            least[1:][better], back[1:][better] = reduced[better], column
            step_to = int(np.where(free, least[1:], np.inf).argmin()) + 1
            delta = least[step_to]
            u[row_of[used]] += delta
            v[used] -= delta
            least[1:][free] -= delta
            column = step_to
        while column:
            row_of[column] = row_of[back[column]]
            column = back[column]
    return {int(row_of[column]) - 1: column - 1 for column in range(1, columns + 1) if row_of[column]}
