"""Real people, pictures: does a personal residual foretell votes better than what everybody thinks?

    P(first) = σ(s_first − s_second + r_user · (c_first − c_second)),  |r_user| ≤ bound

`s` is one Bradley-Terry strength a picture, shared by everybody; `c` is what its pixels show; `r` is the user side of
this project: a residual of bounded norm in a shared space, learned by pairwise logistic loss. Without `r` it is
Bradley-Terry.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icg.evaluation.people import Floats
from icg.preference import logistic


@dataclass(frozen=True)
class Votes:
    """Who preferred which picture to which."""

    people: NDArray[np.int64]  # [n]
    chosen: NDArray[np.int64]  # [n], pictures
    rejected: NDArray[np.int64]  # [n]

    def __len__(self) -> int:
        return len(self.people)

    def where(self, mask: NDArray[np.bool_]) -> Votes:
        return Votes(self.people[mask], self.chosen[mask], self.rejected[mask])

    def permuted(self, seed: int) -> Votes:
        """The same votes, each person's given to somebody else: no personal model can gain from these."""
        names = np.unique(self.people)
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(names))
        # One cycle through all of them: nobody keeps their own.
        taken = dict(zip(names[order].tolist(), names[np.roll(order, 1)].tolist(), strict=True))
        return Votes(np.array([taken[person] for person in self.people.tolist()]), self.chosen, self.rejected)


@dataclass(frozen=True)
class Settings:
    """Chosen on the last quarter of the votes to fit."""

    strength: float  # precision of the prior of a picture's strength
    taste: float  # precision of the prior of a person's residual
    bound: float  # norm that no residual exceeds
    dimension: int  # leading axes of the pictures' attributes


@dataclass(frozen=True)
class Fitted:
    strengths: Floats  # [pictures]
    residuals: Floats  # [people, d]
    space: Floats  # [pictures, d]

    def margins(self, votes: Votes, personal: bool = True) -> Floats:
        """Positive where the vote is foretold."""
        margin = self.strengths[votes.chosen] - self.strengths[votes.rejected]
        if personal:
            steps = self.space[votes.chosen] - self.space[votes.rejected]
            margin = margin + (self.residuals[votes.people] * steps).sum(axis=1)
        return np.asarray(margin)


def axes(attributes: Floats, dimension: int) -> Floats:
    """Leading principal axes of standardised attributes [n, k], each scaled to variance 1: [n, dimension]."""
    centred = attributes - attributes.mean(axis=0)
    centred = centred / np.maximum(centred.std(axis=0), 1e-9)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    kept = min(dimension, int((values > 1e-9).sum()))
    return np.asarray(left[:, :kept] * np.sqrt(len(attributes)))


def fit(votes: Votes, people: int, space: Floats, settings: Settings) -> Fitted:
    """Strengths from everybody, then each person's residual from their own votes."""
    strengths = bradley_terry(votes, len(space), settings.strength)
    free = tastes(votes, people, space, strengths, settings.taste)
    return Fitted(strengths, bounded(free, settings.bound), space)


def bradley_terry(votes: Votes, pictures: int, precision: float) -> Floats:
    """Strengths [pictures] that everybody shares."""
    one_hot = np.zeros((len(votes), pictures))
    one_hot[np.arange(len(votes)), votes.chosen] += 1
    one_hot[np.arange(len(votes)), votes.rejected] -= 1
    return logistic(one_hot, np.zeros(len(votes)), precision)


def tastes(votes: Votes, people: int, space: Floats, strengths: Floats, precision: float) -> Floats:
    """Each person's residual, not bounded yet: [people, d]."""
    margin = strengths[votes.chosen] - strengths[votes.rejected]
    steps = space[votes.chosen] - space[votes.rejected]
    residuals = np.zeros((people, space.shape[1]))
    for person in np.unique(votes.people):
        mine = votes.people == person
        residuals[person] = logistic(steps[mine], margin[mine], precision)
    return residuals


def bounded(residual: Floats, bound: float) -> Floats:
    """[..., d], each shortened to the bound where it is longer."""
    length = np.linalg.norm(residual, axis=-1, keepdims=True)
    return np.asarray(residual * np.minimum(1.0, bound / np.maximum(length, 1e-12)))


def likelihoods(margins: Floats) -> Floats:
    """Log-likelihood of each vote."""
    return np.asarray(-np.logaddexp(0, -margins))


def chosen_settings(votes: Votes, order: NDArray[np.int64], people: int, attributes: Floats) -> Settings:
    """The settings that foretell the last quarter of each person's votes to fit best from the others.

    Args:
        order: position of each vote in its session.
    """
    cut = np.quantile(order, 0.75)
    early, late = votes.where(order < cut), votes.where(order >= cut)
    best, settings = -np.inf, Settings(1.0, 100.0, 1.0, 2)
    for strength in (0.3, 1.0, 3.0):
        shared = bradley_terry(early, len(attributes), strength)
        for dimension, taste in itertools.product((2, 4, 8, 16), (3.0, 10.0, 30.0, 100.0)):
            space = axes(attributes, dimension)
            free = tastes(early, people, space, shared, taste)
            for bound in (0.3, 1.0, 3.0):
                tried = Settings(strength, taste, bound, dimension)
                found = likelihoods(Fitted(shared, bounded(free, bound), space).margins(late)).mean()
                if found > best:
                    best, settings = float(found), tried
    return settings


def by_person(values: Floats, votes: Votes) -> Floats:
    """Mean of each person's values, people without a vote left out."""
    _, index = np.unique(votes.people, return_inverse=True)
    return np.asarray(np.bincount(index, values) / np.bincount(index))


def read(sessions: Sequence[dict[str, object]], fitted: int = 24) -> tuple[Votes, NDArray[np.int64], NDArray[np.bool_]]:
    """Accepted sessions' decided votes.

    Returns:
        The votes, the position of each in its session, and which are to be fitted or tested: True for the first
        `fitted`. A later vote on a pair that its person was shown before is left out: sessions repeat two pairs and are
        accepted only if the answers agree, so these would be foretold by memory.
    """
    rows, order = [], []
    for person, session in enumerate(session for session in sessions if session["acc"]):
        before: set[frozenset[int]] = set()
        votes = session["vot"]
        assert isinstance(votes, list)
        for position, vote in enumerate(votes):
            left, right, chosen = vote["imL"], vote["imR"], vote["imC"]
            pair = frozenset((left, right))
            if chosen != -1 and not (position >= fitted and pair in before):
                rows.append((person, chosen, right if chosen == left else left))
                order.append(position)
            before.add(pair)
    people, chosen, rejected = np.array(rows, np.int64).T
    place = np.array(order, np.int64)
    return Votes(people, chosen, rejected), place, place < fitted
