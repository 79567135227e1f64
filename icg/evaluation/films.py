"""Real people, no pictures: does this project's user side rank what a person watches next?

    score(u, c) = (e_u + r_u)ᵀ c + bᵀ c,  |r_u| ≤ bound · |e_u|

`c` are a film's vectors in a shared space that is frozen, `e` the embedding that a recommender brings (both by implicit
matrix factorisation, Hu, Koren and Volinsky 2008), `r` the taste on top, learned by pairwise logistic loss against
films that were not watched: the preference model with W = 1. Without `e` and `r` it is the global model, without `r`
and `b` matrix factorisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icg.evaluation.choices import logistic
from icg.evaluation.people import Floats
from icg.evaluation.votes import bounded

NEGATIVES = 5  # films not watched, for each one liked


@dataclass(frozen=True)
class Log:
    """Who liked what, in time: rows sorted by time within a person."""

    people: NDArray[np.int64]  # [n]
    films: NDArray[np.int64]  # [n]
    liked: NDArray[np.bool_]  # [n]

    def where(self, mask: NDArray[np.bool_]) -> Log:
        return Log(self.people[mask], self.films[mask], self.liked[mask])

    def share(self) -> Floats:
        """How far in its person's time each row lies, 0 to 1."""
        count = np.bincount(self.people)
        start = np.cumsum(count) - count
        return np.asarray((np.arange(len(self.people)) - start[self.people]) / count[self.people])


@dataclass(frozen=True)
class Settings:
    """Chosen on the last eighth of the rows to fit."""

    factors: int  # of the factorisation
    weight: float  # how much more a watched film counts than one not watched
    ridge: float  # of the factorisation
    taste: float  # precision of the residual's prior
    bound: float  # of the residual, in lengths of the embedding


def factorise(watched: Floats, factors: int, weight: float, ridge: float, rounds: int = 10) -> tuple[Floats, Floats]:
    """Implicit matrix factorisation of [people, films] in {0, 1} by alternating least squares."""
    rng = np.random.default_rng(0)
    films = 0.1 * rng.normal(size=(watched.shape[1], factors))
    people = np.zeros((watched.shape[0], factors))
    for _ in range(rounds):
        people = _side(watched, films, weight, ridge)
        films = _side(watched.T, people, weight, ridge)
    return people, films


def _side(watched: Floats, other: Floats, weight: float, ridge: float) -> Floats:
    gram = other.T @ other + ridge * np.eye(other.shape[1])
    found = np.zeros((watched.shape[0], other.shape[1]))
    for row in range(watched.shape[0]):
        columns = np.flatnonzero(watched[row])
        if len(columns):
            mine = other[columns]
            found[row] = np.linalg.solve(gram + weight * mine.T @ mine, (1 + weight) * mine.sum(axis=0))
    return found


def matrix(log: Log, people: int, films: int) -> Floats:
    watched = np.zeros((people, films))
    watched[log.people[log.liked], log.films[log.liked]] = 1
    return watched


@dataclass(frozen=True)
class Fitted:
    embeddings: Floats  # e, [people, d]
    residuals: Floats  # r, [people, d]
    films: Floats  # c, [films, d]
    bias: Floats  # b, [d]
    popularity: Floats  # [films]

    def scores(self, who: str) -> Floats:
        """[people, films] of the contender `who`."""
        people = len(self.embeddings)
        if who == "popularity":
            return np.tile(self.popularity, (people, 1))
        if who == "global":
            return np.tile(self.films @ self.bias, (people, 1))
        users = {
            "factorisation": self.embeddings,
            "personal": self.embeddings + self.residuals + self.bias,
            "no_residual": self.embeddings + self.bias,
        }[who]
        return np.asarray(users @ self.films.T)


CONTENDERS = ("popularity", "global", "factorisation", "no_residual", "personal")


def fit(log: Log, people: int, films: int, settings: Settings, given: tuple[Floats, Floats] | None = None) -> Fitted:
    """Factorise, then b from everybody and each person's residual from their own rows.

    Args:
        given: a factorisation of the same log, where there is one already.
    """
    watched = matrix(log, people, films)
    embeddings, space = given or factorise(watched, settings.factors, settings.weight, settings.ridge)
    popularity = watched.sum(axis=0)
    rng = np.random.default_rng(1)
    known = popularity > 0
    liked = [np.flatnonzero(row) for row in watched]
    steps = []
    for mine in liked:
        other = rng.choice(np.flatnonzero(known), size=(len(mine), NEGATIVES))
        keep = ~np.isin(other, mine)
        steps.append((space[mine][:, None] - space[other])[keep])
    pooled = np.concatenate(steps)
    some = pooled[rng.permutation(len(pooled))[:20_000]]
    scale = 1 / max(float(some.std()), 1e-9)
    # Factors are small numbers: both are fitted in units in which a step is about 1, and then put back.
    bias = scale * logistic(scale * some, np.zeros(len(some)), 1.0)
    residuals = np.zeros_like(embeddings)
    for person, mine in enumerate(steps):
        if len(mine):
            offset = mine @ (embeddings[person] + bias)
            found = scale * logistic(scale * mine, offset, settings.taste)
            residuals[person] = bounded(found, settings.bound * float(np.linalg.norm(embeddings[person])))
    return Fitted(embeddings, residuals, space, bias, popularity)


def ndcg(scores: Floats, seen: Log, later: Log, top: int = 10) -> tuple[NDArray[np.int64], Floats]:
    """NDCG of each person who liked something later, all films ranked but those that they had rated before.

    Returns:
        The people, and theirs.
    """
    scores = scores.copy()
    scores[seen.people, seen.films] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    discount = 1 / np.log2(np.arange(2, top + 2))
    names = np.unique(later.people[later.liked])
    found = []
    for person in names:
        wanted = later.films[(later.people == person) & later.liked]
        gained = discount[np.isin(best[person], wanted)].sum()
        found.append(gained / discount[: len(wanted)].sum())
    return names, np.array(found)


def chosen_settings(log: Log, people: int, films: int) -> tuple[Settings, dict[str, float]]:
    """The factorisation that ranks the last eighth of these rows best, then the residual that does; and their NDCG."""
    share = log.share()
    early, late = log.where(share < 7 / 8), log.where(share >= 7 / 8)
    watched = matrix(early, people, films)
    best, settings, kept = -1.0, Settings(16, 1.0, 1.0, 1.0, 1.0), None
    for factors in (16, 32, 64):
        for weight in (2.0, 10.0):
            for ridge in (3.0, 30.0):
                given = factorise(watched, factors, weight, ridge, rounds=6)
                found = float(ndcg(given[0] @ given[1].T, early, late)[1].mean())
                if found > best:
                    best, kept = found, given
                    settings = Settings(factors, weight, ridge, 1.0, 1.0)
    reached, chosen = -1.0, settings
    for taste in (1.0, 10.0, 100.0, 1000.0):
        for bound in (0.1, 0.3, 1.0):
            tried = Settings(settings.factors, settings.weight, settings.ridge, taste, bound)
            scores = fit(early, people, films, tried, kept).scores("personal")
            found = float(ndcg(scores, early, late)[1].mean())
            if found > reached:
                reached, chosen = found, tried
    return chosen, {"factorisation": best, "personal": reached}
