"""Real people, no pictures: does this project's user side rank what a person watches next?

    score(u, c) = (s e_u + r_u)ᵀ c + bᵀ c,  |r_u| ≤ bound

As in production: a recommender's embeddings `e` and the films' vectors `c` come from what happened before an import
(implicit matrix factorisation, Hu, Koren and Volinsky 2008) and are then frozen; from what happens after it everybody
teaches `s` and `b` (the preference model with W = s 1) and each person their own residual `r`, by pairwise logistic
loss against films that were not watched. `imported` is e alone, `global` b alone, `factorisation` is factorised anew
from all of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from icg.evaluation.people import Floats
from icg.evaluation.votes import bounded
from icg.preference import logistic

NEGATIVES = 5  # films not watched, for each one liked


class Log(NamedTuple):
    """Who liked what, in time: rows sorted by time within a person."""

    people: NDArray[np.int64]  # [n]
    films: NDArray[np.int64]  # [n]
    liked: NDArray[np.bool_]  # [n]

    def where(self, mask: NDArray[np.bool_]) -> Log:
        return Log(self.people[mask], self.films[mask], self.liked[mask])

    def share(self) -> Floats:
        """How far in its person's time each row lies, 0 to 1."""
        number = np.bincount(self.people)
        start = np.cumsum(number) - number
        return np.asarray((np.arange(len(self.people)) - start[self.people]) / number[self.people])


@dataclass(frozen=True)
class Factors:
    """Of the factorisation, chosen by what is watched after the import."""

    factors: int
    weight: float  # how much more a watched film counts than one not watched
    ridge: float


@dataclass(frozen=True)
class Taste:
    """Of the residual, chosen by the second half of what is watched after the import."""

    precision: float  # of its prior
    bound: float  # of its norm, in units in which a step between two films is about 1; 0: no residual


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
    films: Floats  # c, [films, d]
    scale: float  # s
    bias: Floats  # b, [d]
    residuals: Floats  # r, [people, d]

    def scores(self, who: str) -> Floats:
        """[people, films] of the contender "imported", "global", "no_residual" or "personal"."""
        zero = np.zeros_like(self.residuals)
        users = {
            "imported": self.embeddings,
            "global": zero + self.bias,
            "no_residual": self.scale * self.embeddings + self.bias,
            "personal": self.scale * self.embeddings + self.residuals + self.bias,
        }[who]
        return np.asarray(users @ self.films.T)


CONTENDERS = ("popularity", "global", "imported", "no_residual", "factorisation", "personal")


def popularity(log: Log, people: int, films: int) -> Floats:
    """[people, films], the same for everybody."""
    return np.tile(matrix(log, people, films).sum(axis=0), (people, 1))


def learn(
    before: Log, after: Log, given: tuple[Floats, Floats], tastes: Sequence[Taste], seed: int = 1
) -> list[Fitted]:
    """s and b from everybody's later rows, r from each person's own; one result for each of `tastes`.

    Args:
        before: until the import; films watched then are no negatives.
        after: the later rows, that teach.
        given: e [people, d] and c [films, d].
    """
    embeddings, space = given
    people, films = len(embeddings), len(space)
    watched, later = matrix(before, people, films), matrix(after, people, films)
    candidates = np.flatnonzero((watched + later).sum(axis=0) > 0)
    rng = np.random.default_rng(seed)
    steps = []
    for person in range(people):
        mine = np.flatnonzero(later[person])
        other = rng.choice(candidates, size=(len(mine), NEGATIVES))
        keep = (watched + later)[person, other] == 0
        steps.append((space[mine][:, None] - space[other])[keep])
    unit = 1 / float(np.concatenate(steps).std())
    pooled = np.concatenate(
        [
            np.column_stack([unit * mine @ embedding, unit * mine])
            for mine, embedding in zip(steps, embeddings, strict=True)
        ]
    )
    some = pooled[rng.permutation(len(pooled))[:20_000]]
    # The factors are small numbers: all is fitted in units in which a step is about 1, and then put back.
    shared = logistic(some, np.zeros(len(some)), 1.0)
    scale, bias = float(unit * shared[0]), unit * shared[1:]
    free: dict[float, Floats] = {}
    for precision in {taste.precision for taste in tastes}:
        free[precision] = np.zeros_like(embeddings)
        for person, mine in enumerate(steps):
            if len(mine):
                offset = mine @ (scale * embeddings[person] + bias)
                free[precision][person] = logistic(unit * mine, offset, precision)
    return [
        Fitted(embeddings, space, scale, bias, unit * bounded(free[taste.precision], taste.bound)) for taste in tastes
    ]


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


def chosen_factors(before: Log, after: Log, people: int, films: int) -> Factors:
    """The factorisation of the earlier rows that ranks the later ones best."""
    watched = matrix(before, people, films)
    best, chosen = -1.0, Factors(16, 1.0, 1.0)
    for values in itertools.product((16, 32, 64), (2.0, 10.0), (3.0, 30.0)):
        tried = Factors(*values)
        one, two = factorise(watched, tried.factors, tried.weight, tried.ridge, rounds=6)
        found = float(ndcg(one @ two.T, before, after)[1].mean())
        if found > best:
            best, chosen = found, tried
    return chosen


def chosen_taste(before: Log, after: Log, given: tuple[Floats, Floats]) -> Taste:
    """The residual, learned from the first half of each person's later rows, that ranks the second half best."""
    share = after.share()
    early, late = after.where(share < 0.5), after.where(share >= 0.5)
    seen = Log(*(np.concatenate(pair) for pair in zip(before, early, strict=True)))
    tried = [Taste(*values) for values in itertools.product((0.3, 1.0, 3.0, 10.0, 100.0), (0.1, 0.3, 1.0, 3.0))]
    tried.append(Taste(1.0, 0.0))
    found = [ndcg(one.scores("personal"), seen, late)[1].mean() for one in learn(before, early, given, tried)]
    return tried[int(np.argmax(found))]
