"""Training people: vectors estimated from their choices, and what everybody else likes on average."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor, nn

from icg.alignment.catalogue import Choices, Integers
from icg.preference import Head, estimate
from icg.rewards.preference import PreferenceModel

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class PeopleConfig:
    """How vectors are estimated; held-out people will bring between 5 and 50 choices, so training people do too."""

    histories: int = 4  # vectors of each person, each from another part of the history
    fewest: int = 5  # choices in a history, at least
    most: int = 50  # and at most, log-uniformly between
    precision: float = 1.0  # of the estimate's prior
    segments: int = 8  # groups of people; a personal reward is against the other groups
    seed: int = 0


@dataclass(frozen=True)
class People:
    """People in the space of a preference model.

    Attributes:
        vectors: [people, histories, d].
        whole: [people, d], from the first `most` choices.
        others: [people, d], the mean of `whole` over all people of other segments.
        segments: [people].
        shown: numbers of the choices that no vector saw: what may be learned from.
    """

    vectors: Vectors
    whole: Vectors
    others: Vectors
    segments: Integers
    shown: Integers

    def __len__(self) -> int:
        return len(self.whole)


def estimate_people(choices: Choices, head: Head, embeddings: Vectors, config: PeopleConfig) -> People:
    """Vectors from the first half of each person's choices; the second half is left to be learned from.

    Otherwise a vector would have been fitted on the very picture that it is then asked to explain.

    Args:
        embeddings: [rows, d], of the catalogue's pictures in the head's space.
    """
    rng = np.random.default_rng(config.seed)
    vectors = np.zeros((choices.people, config.histories, head.dimension), np.float32)
    whole = np.zeros((choices.people, head.dimension), np.float32)
    shown = []

    def vector(mine: Integers) -> Vectors:
        return estimate(head, embeddings[choices.chosen[mine]], embeddings[choices.rejected[mine]], config.precision)

    for person in range(choices.people):
        mine = np.flatnonzero(choices.users == person)
        past = mine[: max(1, len(mine) // 2)]
        shown.append(mine[len(past) :] if len(mine) > 1 else mine)
        low, high = min(config.fewest, len(past)), min(config.most, len(past))
        for history in range(config.histories):
            count = int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))
            vectors[person, history] = vector(np.sort(rng.permutation(past)[: min(count, high)]))
        whole[person] = vector(past[: config.most])
    segments = _segments(whole, config)
    return People(vectors, whole, _others(whole, segments), segments, np.concatenate(shown))


def same_segments(people: People, of: People) -> People:
    """The people of a second space in the segments of the first, so that two judges mean the same others."""
    return replace(people, segments=of.segments, others=_others(people.whole, of.segments))


def _segments(vectors: Vectors, config: PeopleConfig) -> Integers:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    groups = min(config.segments, len(np.unique(unit, axis=0)))
    means = KMeans(groups, n_init=4, random_state=config.seed)
    return np.asarray(means.fit_predict(unit), np.int64)


def _others(vectors: Vectors, segments: Integers) -> Vectors:
    total, count = vectors.sum(axis=0), len(vectors)
    sums = np.zeros((segments.max() + 1, vectors.shape[1]), np.float32)
    np.add.at(sums, segments, vectors)
    sizes = np.bincount(segments)
    return np.asarray((total - sums[segments]) / np.maximum(count - sizes[segments], 1)[:, None], np.float32)


class Taste(nn.Module):
    """The personal reward: r(user) − mean r over the users of other segments, of the same picture.

    The score is linear in the user, so the mean over others is the score of their mean.
    """

    vectors: Tensor
    whole: Tensor
    others: Tensor

    def __init__(self, model: PreferenceModel, people: People) -> None:
        super().__init__()
        self.model = model
        for name in ("vectors", "whole", "others"):
            self.register_buffer(name, torch.from_numpy(getattr(people, name)), persistent=False)

    def forward(self, images: Tensor, users: Tensor) -> Tensor:
        """[n, 3, height, width] in [0, 1] and numbers of people [n] to [n]."""
        covers = self.model.encoder(images)
        score = self.model.score
        return score(self.whole[users], covers) - score(self.others[users], covers)
