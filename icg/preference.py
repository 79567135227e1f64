"""The preference model's learned half: which cover does a user like better? numpy alone, no torch.

    score(u, c) = uᵀ W c + bᵀ c

with u a user vector [d] and c the cover's embedding [d], both of one space. `W` starts as the identity and `b` at zero:
before anything was learned, a user likes what lies in the direction of their own vector. Of two covers the first is
chosen with probability σ(score(u, first) − score(u, second)) (Bradley and Terry, 1952), so the loss of a pair is
−log σ(margin). The cover's embedding comes from the space's frozen encoder, `icg.rewards.preference`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from icg.exceptions import BadWeights

Array = NDArray[np.float32]
Doubles = NDArray[np.float64]

CONFIG = "config.json"
WEIGHTS = "head.safetensors"


@dataclass(frozen=True)
class Gradient:
    """Of the mean weighted loss of a batch of pairs."""

    loss: float
    weight: Array  # [d, d]
    bias: Array  # [d]
    users: Array  # [n, d], of each pair's own loss: n times the share that it has in the mean


class Head:
    """W and b.

    Attributes:
        space: revision of the space in which users and covers mean something.
        weight: [d, d] float32.
        bias: [d] float32.
    """

    def __init__(self, space: str, weight: ArrayLike, bias: ArrayLike) -> None:
        self.space = space
        self.weight: Array = np.array(weight, np.float32)
        self.bias: Array = np.array(bias, np.float32)
        if self.bias.ndim != 1 or self.weight.shape != (len(self.bias), len(self.bias)):
            raise ValueError(f"W has shape {self.weight.shape} and b {self.bias.shape}: (d, d) and (d,) are wanted")

    @classmethod
    def start(cls, space: str, dimension: int = 64) -> Self:
        """Nothing learned yet."""
        return cls(space, np.eye(dimension), np.zeros(dimension))

    @property
    def dimension(self) -> int:
        return len(self.bias)

    def score(self, users: ArrayLike, covers: ArrayLike) -> Array:
        """[…, d] and […, d], broadcast against each other, to […]."""
        users, covers = self._checked(users, "users"), self._checked(covers, "covers")
        return np.asarray(((users @ self.weight + self.bias) * covers).sum(-1), np.float32)

    def margins(self, users: ArrayLike, chosen: ArrayLike, rejected: ArrayLike) -> Array:
        """score(u, chosen) − score(u, rejected), [n]."""
        return self.score(users, self._checked(chosen, "chosen") - self._checked(rejected, "rejected"))

    def loss(self, users: ArrayLike, chosen: ArrayLike, rejected: ArrayLike, weights: ArrayLike | None = None) -> float:
        """Mean of −log σ(margin), weighted."""
        losses = np.logaddexp(0, -self.margins(users, chosen, rejected))
        return float(np.average(losses, weights=None if weights is None else np.asarray(weights, np.float32)))

    def gradient(
        self, users: ArrayLike, chosen: ArrayLike, rejected: ArrayLike, weights: ArrayLike | None = None
    ) -> Gradient:
        """Loss and gradient for pairs [n, d]; weights [n], not all zero."""
        users = self._checked(users, "users")
        steps = self._checked(chosen, "chosen") - self._checked(rejected, "rejected")
        margins = self.score(users, steps)
        share = np.ones(len(margins), np.float32) if weights is None else np.asarray(weights, np.float32)
        share = share / share.sum()
        # d/dm −log σ(m) = −σ(−m); written with tanh it cannot overflow.
        slope = -0.5 * (1 - np.tanh(margins / 2))
        pull = (share * slope)[:, None] * steps
        losses = np.logaddexp(0, -margins)
        return Gradient(
            loss=float(share @ losses),
            weight=(users.T @ pull).astype(np.float32),
            bias=pull.sum(0, dtype=np.float32),
            users=(slope[:, None] * (steps @ self.weight.T)).astype(np.float32),
        )

    def step(
        self,
        users: ArrayLike,
        chosen: ArrayLike,
        rejected: ArrayLike,
        weights: ArrayLike | None = None,
        rate: float = 0.1,
        decay: float = 0.0,
    ) -> float:
        """One step of gradient descent, in place; the loss before it.

        Args:
            decay: pull of W to the identity and of b to zero, as a share of the distance, times `rate`.
        """
        gradient = self.gradient(users, chosen, rejected, weights)
        self.weight -= rate * (gradient.weight + decay * (self.weight - np.eye(self.dimension, dtype=np.float32)))
        self.bias -= rate * (gradient.bias + decay * self.bias)
        return gradient.loss

    def copy(self) -> Head:
        return Head(self.space, self.weight, self.bias)

    def _checked(self, vectors: ArrayLike, name: str) -> Array:
        array = np.asarray(vectors, np.float32)
        if array.shape[-1:] != (self.dimension,):
            raise ValueError(f"{name} of shape {array.shape}: the last dimension must be {self.dimension}")
        return array

    def save(self, directory: str | Path) -> None:
        """Write the two files of the part `preference`."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"dimension": self.dimension, "space": self.space}
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file({"weight": self.weight, "bias": self.bias}, folder / WEIGHTS)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read and check.

        Raises:
            BadWeights: a file is missing, a shape is not what the config says, a value is not finite.
        """
        folder = Path(directory)
        try:
            config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
            tensors = load_file(folder / WEIGHTS)
            dimension, space = int(config["dimension"]), str(config["space"])
            weight, bias = tensors["weight"], tensors["bias"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise BadWeights(f"the preference head at {folder} cannot be read: {error}") from None
        if weight.shape != (dimension, dimension) or bias.shape != (dimension,):
            raise BadWeights(f"the preference head has shapes {weight.shape} and {bias.shape}, its config {dimension}")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise BadWeights("the preference head holds NaN or infinity")
        return cls(space, weight, bias)


def estimate(head: Head, chosen: ArrayLike, rejected: ArrayLike, precision: float = 1.0) -> Array:
    """A person's vector from their choices alone: nobody else's but through the head.

        u = argmax Σ log σ(score(u, chosen) − score(u, rejected)) − precision / 2 · |u|²

    The same pairwise logistic that the learner minimises, solved to the end.

    Args:
        head: the preference model in whose space the vector means something.
        chosen: [n, d], embeddings of the chosen pictures.
        rejected: [n, d], of the others.
        precision: of the prior, one over the variance of each of the vector's numbers.

    Returns:
        [d]; zeros from no choices.
    """
    steps = np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64)
    if steps.ndim != 2 or steps.shape[1] != head.dimension:
        raise ValueError(f"choices of shape {steps.shape}: [n, {head.dimension}] is wanted")
    features, offset = steps @ head.weight.T.astype(np.float64), steps @ head.bias.astype(np.float64)
    return logistic(features, offset, precision).astype(np.float32)


def logistic(features: Doubles, offset: Doubles, precision: float, steps: int = 50) -> Doubles:
    """argmin over u [d] of Σ −log σ(features u + offset) + precision / 2 · |u|², by Newton's method."""
    if precision <= 0:
        raise ValueError(f"precision is {precision}, more than 0 is wanted")
    u = np.zeros(features.shape[1])
    loss = _loss(features, offset, precision, u)
    for _ in range(steps):
        p = 0.5 * (1 + np.tanh((features @ u + offset) / 2))
        gradient = precision * u - features.T @ (1 - p)
        hessian = precision * np.eye(len(u)) + (features.T * (p * (1 - p))) @ features
        move = np.linalg.solve(hessian, gradient)
        # Far from the optimum Newton may overshoot; the problem is convex, so halving finds a decrease. Close to it
        # rounding may let the loss stand still.
        for _ in range(30):
            nearer = _loss(features, offset, precision, u - move)
            if nearer <= loss + 1e-9 * abs(loss):
                break
            move = move / 2
        u = u - move
        if np.abs(move).max() < 1e-7:
            break
        loss = nearer
    return np.asarray(u)


def _loss(features: Doubles, offset: Doubles, precision: float, u: Doubles) -> float:
    return float(np.logaddexp(0, -(features @ u + offset)).sum() + precision / 2 * u @ u)
