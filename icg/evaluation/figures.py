"""The figures of the measuring page, from tables [people, concepts]. Pure: no model, no picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from icg.evaluation.bootstrap import RESAMPLES, Interval, of_means, over_pairs
from icg.evaluation.people import Floats
from icg.evaluation.report import Figure

WANTED_WINS = {"neutral": 0.75, "mismatched": 0.80, "filtered_neutral": 0.70, "inferred_prompt": 0.60}
"""Least share of wins over each; over best-of-8 the interval must lie above 0.50."""


Table = Floats | NDArray[np.bool_]


def bounded(
    name: str, found: Interval, least: float | None = None, most: float | None = None, note: str = ""
) -> list[Figure]:
    """A figure with `_low` and `_high` beside it."""
    return [
        Figure(name, found.value, least, most, note),
        Figure(f"{name}_low", found.low),
        Figure(f"{name}_high", found.high),
    ]


def won(own: Floats, other: Floats) -> Floats:
    """1 where a person's U of their own cover is higher, a half where it is the same."""
    if own.shape != other.shape:
        raise ValueError(f"tables of shape {own.shape} and {other.shape}")
    return np.asarray((own > other) + 0.5 * (own == other))


def wins_over(own: Floats, other: Floats, resamples: int = RESAMPLES) -> Interval:
    """Share of (person, concept) pairs won, resampled over both."""
    return over_pairs(won(own, other), resamples=resamples)


def headroom(own: Floats, neutral: Floats, oracle: Floats, resamples: int = RESAMPLES) -> Interval:
    """(U_own − U_neutral) / (U_oracle − U_neutral), of means."""

    def ratio(means: Floats) -> float:
        above = float(means[2] - means[1])
        return float(means[0] - means[1]) / above if above > 0 else float("nan")

    return of_means(np.stack([own, neutral, oracle]), ratio, resamples=resamples)


def kept(own: Table, reference: Table, floor: float, resamples: int = RESAMPLES) -> Interval:
    """(mean − floor) / (reference's mean − floor); `relevance_kept` of hits with the chance as floor."""

    def ratio(means: Floats) -> float:
        above = float(means[1]) - floor
        return (float(means[0]) - floor) / above if above > 0 else float("nan")

    return of_means(np.stack([own.astype(float), reference.astype(float)]), ratio, resamples=resamples)


def quality_kept(fast: Floats, full: Floats, neutral: Floats, resamples: int = RESAMPLES) -> Interval:
    """(U_fast − U_neutral) / (U_full − U_neutral), same seeds."""
    return headroom(fast, neutral, full, resamples)


def auc(scores: Floats, chosen: NDArray[np.bool_]) -> float:
    """Probability that a pair that was chosen scores above one that was not; ties half. Any shape."""
    scores, chosen = np.ravel(scores), np.ravel(chosen)
    positive, negative = scores[chosen], np.sort(scores[~chosen])
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.mean() / 2 / len(negative))


def kid(features: Floats, real: Floats, seed: int = 0, size: int = 200, rounds: int = 50) -> float:
    """Kernel inception distance (Binkowski et al. 2018), unbiased, cubic kernel, over subsets; x 1000.

    The features [n, d] are the relevance judge's, not Inception's: nothing pretrained is at hand, so it compares with
    nothing published.
    """
    size = min(size, len(features), len(real))
    if size < 2:
        raise ValueError(f"{len(features)} and {len(real)} pictures: at least two of each are wanted")
    rng = np.random.default_rng(seed)
    return float(
        1000
        * np.mean(
            [
                _mmd(
                    features[rng.choice(len(features), size, replace=False)],
                    real[rng.choice(len(real), size, replace=False)],
                )
                for _ in range(rounds)
            ]
        )
    )


def _mmd(x: Floats, y: Floats) -> float:
    def kernel(a: Floats, b: Floats) -> Floats:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    n = len(x)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    return float((xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1)) - 2 * xy.mean())


def fid(features: Floats, real: Floats) -> float:
    """Frechet distance between normal fits (Heusel et al. 2017), in the relevance judge's features.

    Biased for few pictures: beside it belongs `fid` of as many other real pictures.
    """
    mean = features.mean(axis=0) - real.mean(axis=0)
    one, two = np.cov(features, rowvar=False), np.cov(real, rowvar=False)
    # tr √(AB) over the symmetric form √A B √A, whose eigenvalues are those of AB.
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ two @ root), 0)).sum()
    return float(mean @ mean + np.trace(one) + np.trace(two) - 2 * cross)


def diversity(features: Floats) -> float:
    """Mean Euclidean distance between two of the pictures [n, d]."""
    n = len(features)
    if n < 2:
        return float("nan")
    square = (features**2).sum(axis=1)
    distance = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * features @ features.T, 0))
    return float(distance.sum() / (n * (n - 1)))


def copied(pictures: NDArray[np.uint8], real: NDArray[np.uint8], own: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the real picture nearest to each is its own reference.

    Args:
        pictures: [n, 64, 64, 3].
        real: [m, 64, 64, 3], references among them.
        own: [n], row of each picture's reference in `real`.
    """
    # At half the size, so that a reference a pixel off is still found.
    x, y = (_halved(some).reshape(len(some), -1) for some in (pictures, real))
    distance = (y**2).sum(axis=1)[None] - 2 * x @ y.T
    return np.asarray(distance.argmin(axis=1) == own)


def _halved(pictures: NDArray[np.uint8]) -> Floats:
    n, height, width, _ = pictures.shape
    return np.asarray(pictures.reshape(n, height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4)) / 255)
