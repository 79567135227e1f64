"""What a policy makes of one reader and one item's covers: probabilities, exact, before exploration. numpy, no I/O.

`segment` shows the cover of the reader's own segment. The others look at how much this person would like each cover,

    r(u, c) = (uᵀ W + bᵀ) c

with u the imported embedding plus the learned residual, and W, b the released preference head (`icg.preference`):

* `softmax`: p(c) ∝ exp(r(u, c) / τ). At τ = 1 it is Luce's choice rule of the head's own model.
* `thompson`: p(c) = share of draws from the posterior of u in which c is the best (Thompson, 1933). The posterior is
  taken as N(u, s² I), s² = (bound · |u|)² / (d · (1 + n / d)): before any pair a draw strays as far as a residual may,
  and n pairs in d directions count as n / d observations of each. An isotropic stand-in, chosen so that nothing but
  the person's own row is needed. `DRAWS` draws come from a stream seeded by person and day and are the policy
  itself: it picks among the covers by the shares that it counted, so the propensities that a token carries are the
  exact ones of the choice that was made, not an estimate of them.

A person of whom no vector of the head's space is known, and an item with a cover without one, get `segment`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import compress, pairwise
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from icg.preference import Head
from workers.settings import Policy

POLICIES: tuple[Policy, ...] = get_args(Policy)
PERSONAL = frozenset({"softmax", "thompson"})
"""Policies that ask for a person's vector and the covers' embeddings."""

DRAWS = 128
"""Of a thompson policy: shares come in steps of 1/128, 64 kB and 0.1 ms a reader."""

Vector = NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class Person:
    """What the stores know of one reader's taste: a vector [d] of a space, and from how many pairs it learned."""

    space: str
    vector: Vector
    pairs: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Taste:
    """A person under one head: what remains is a product with the covers.

    Attributes:
        pull: [d], uᵀ W + bᵀ (over τ where the policy has one); [d, DRAWS] where the policy draws from a posterior.
    """

    policy: Policy
    space: str
    pull: Vector


class Worth(NamedTuple):
    """What a taste makes of one item's covers."""

    rows: Vector
    """r, one row a cover: [n], or [n, DRAWS] where the policy draws."""
    shares: list[float] | None
    """The policy's probabilities among all of them; None where a value is not finite."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How the policies are set.

    Attributes:
        temperature: τ of `softmax`, in the units of r.
        bound: of a residual, as a share of the embedding's length; how far `thompson` strays at first.
    """

    temperature: float = 0.1
    bound: float = 0.5

    def taste(self, policy: Policy, person: Person | None, head: Head | None, who: str, day: date) -> Taste | None:
        """None where the policy needs no taste, or there is none to be had.

        Args:
            who: the person's id, which seeds the draws together with the day.
        """
        if policy not in PERSONAL or person is None or head is None:
            return None
        if person.space != head.space or person.vector.shape != (head.dimension,):
            return None
        if policy == "softmax":
            return Taste(policy, head.space, (person.vector @ head.weight + head.bias) / np.float32(self.temperature))
        d = head.dimension
        scale = self.bound * float(np.linalg.norm(person.vector)) / np.sqrt(d + person.pairs)
        seed = hashlib.blake2b(f"{who}\n{day.isoformat()}".encode(), digest_size=8).digest()
        noise = np.random.default_rng(int.from_bytes(seed, "big")).standard_normal((DRAWS, d), np.float32)
        people = person.vector + np.float32(scale) * noise
        return Taste(policy, head.space, np.ascontiguousarray((people @ head.weight + head.bias).T))


def probabilities(taste: Taste, embeddings: Vector) -> list[float] | None:
    """One probability a cover [n, d]; they sum to 1. None where an embedding is missing (NaN) or of another length."""
    if embeddings.shape[1] != len(taste.pull):
        return None
    return shares(taste.policy, embeddings @ taste.pull)


def shares(policy: Policy, worth: Vector) -> list[float] | None:
    """The same from r, one row a cover: [n], or [n, DRAWS] where the policy draws. None where one is not finite."""
    if policy == "softmax":
        values: list[float] = worth.tolist()  # nine covers: a third of what numpy takes for them
        if not math.isfinite(sum(values)):
            return None
        top = max(values)
        raised = [math.exp(value - top) for value in values]
        total = sum(raised)
        return [each / total for each in raised]
    if not math.isfinite(float(worth.sum())):
        return None
    return list((np.bincount(worth.argmax(0), minlength=len(worth)) / DRAWS).tolist())


def worths(taste: Taste, embeddings: Sequence[bytes], covers: Sequence[int]) -> list[Worth | None]:
    """r of the covers of each item of a page, in one product: BLAS starts its threads once and not for each item.

    Args:
        embeddings: of each item, as `pack` writes them.
        covers: how many each item has.

    Returns:
        None for an item whose bytes are not so many rows.
    """
    size = 2 * len(taste.pull)
    fits = [0 < size * n == len(data) for data, n in zip(embeddings, covers, strict=True)]
    rows = np.frombuffer(b"".join(compress(embeddings, fits)), "<f2").reshape(-1, len(taste.pull))
    worth = rows.astype(np.float32) @ taste.pull
    sizes = list(compress(covers, fits))
    starts = np.cumsum([0, *sizes])
    parts = [worth[start:end] for start, end in pairwise(starts.tolist())]
    if taste.policy == "softmax":
        told = [shares("softmax", part) for part in parts]
    else:
        told = _counted(worth, starts[:-1], np.array(sizes, np.int64))
    found = map(Worth, parts, told)
    return [next(found) if good else None for good in fits]


def _counted(worth: Vector, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[list[float] | None]:
    """`shares` of each item's rows; of items with as many covers, the draws are counted together."""
    found: list[list[float] | None] = [None] * len(sizes)
    for n in np.unique(sizes).tolist():
        where = np.flatnonzero(sizes == n)
        page = worth[starts[where, None] + np.arange(n)]  # [items, n, DRAWS]
        wins = np.count_nonzero(page == page.max(axis=1, keepdims=True), axis=2)  # a third of what argmax takes
        clear = (wins.sum(axis=1) == DRAWS) & np.isfinite(page.sum(axis=(1, 2)))
        for k, each, rows, good in zip(where.tolist(), (wins / DRAWS).tolist(), page, clear.tolist(), strict=True):
            found[k] = each if good else shares("thompson", rows)  # two covers may be equally good in a draw
    return found


def assigned(
    default: Policy,
    user_id: str | None,
    surface: str | None,
    surfaces: Mapping[str, Policy],
    split: Mapping[Policy, float],
) -> Policy:
    """Which policy a request falls under: its surface's, else the arm of the user, else the default.

    Args:
        split: shares of users by policy, in an A/B test; what they leave of 1 is the default's. By hash of the user
            alone, so that a person stays in one arm.
    """
    if surface is not None and surface in surfaces:
        return surfaces[surface]
    if not split or user_id is None:
        return default
    digest = hashlib.blake2b(f"policy split\n{user_id}".encode(), digest_size=8).digest()
    left = int.from_bytes(digest, "big") / 2**64
    for policy in POLICIES:
        left -= split.get(policy, 0.0)
        if left < 0:
            return policy
    return default


# --- Embeddings in a row of Feast ------------------------------------------------------------------------------------


def pack(embeddings: Sequence[Sequence[float] | NDArray[np.floating] | None], dimension: int) -> bytes:
    """Embeddings [n, d] as float16, row after row; NaN where there is none. 1 kB for eight covers of 64."""
    rows = np.full((len(embeddings), dimension), np.nan, np.float16)
    for row, embedding in enumerate(embeddings):
        if embedding is not None and len(embedding) == dimension:
            rows[row] = embedding
    return rows.astype("<f2").tobytes()


def unpack(data: bytes, covers: int) -> Vector | None:
    """[covers, d] float32; None where the bytes are not so many rows."""
    if not covers or not data or len(data) % (2 * covers):
        return None
    return np.frombuffer(data, "<f2").reshape(covers, -1).astype(np.float32)
