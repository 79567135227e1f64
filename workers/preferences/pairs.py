"""Pairs as the trainer gets them: vectors, no names.

    P(the first was preferred) = σ(score(user, chosen) − score(other, rejected)),   score(u, c) = uᵀ W c + bᵀ c

`user` saw `chosen`, `other` saw `rejected`; they may be one person. What the item itself adds to both scores cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from icg.preference import Head
from workers.events import BadEvent

Floats = NDArray[np.float32]
BATCH = 32
"""Pairs of one step and one message: the streams are cut here, so every product has one shape and one rounding."""
DIGITS = 4
"""Significant digits of a vector's largest entry that travel: 60 kB a message of dimension 64 instead of 150."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """n pairs of one source partition. `sequence` grows by one a message."""

    sequence: int
    partition: int
    space: str
    users: Floats  # [n, d]
    others: Floats
    chosen: Floats
    rejected: Floats
    weights: Floats  # [n]
    held_out: NDArray[np.bool_]  # [n]

    def __len__(self) -> int:
        return len(self.weights)


class _Value(msgspec.Struct):
    sequence: int
    source_partition: int
    space: str
    users: list[list[float]]
    chosen: list[list[float]]
    rejected: list[list[float]]
    weights: list[float]
    others: list[list[float]] | None = None
    held_out: list[bool] | None = None


_decoder = msgspec.json.Decoder(_Value)


def margins(head: Head, users: Floats, chosen: Floats, others: Floats, rejected: Floats) -> Floats:
    """score(user, chosen) − score(other, rejected), [n]."""
    return head.score(users, chosen) - head.score(others, rejected)


def lean(margin: Floats) -> Floats:
    """σ(−margin): how much a pair still pulls. Written with tanh it cannot overflow."""
    return np.asarray(0.5 * (1 - np.tanh(margin / 2)), np.float32)


def encode(pairs: Pairs, time: str) -> bytes:
    """As `events.PreferencePairs`; the vectors are rounded."""
    return orjson.dumps(
        {
            "time": time,
            "sequence": pairs.sequence,
            "source_partition": pairs.partition,
            "space": pairs.space,
            "users": _rounded(pairs.users),
            "others": _rounded(pairs.others),
            "chosen": _rounded(pairs.chosen),
            "rejected": _rounded(pairs.rejected),
            "weights": pairs.weights,
            "held_out": pairs.held_out,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,  # float32 in its shortest spelling, without Python's floats in between
    )


def decode(value: bytes | None) -> Pairs:
    """Read a message.

    Raises:
        BadEvent: no such event, or vectors of other shapes, or not finite.
    """
    if value is None:
        raise BadEvent("the message has no value")
    try:
        read = _decoder.decode(value)
        n, dimension = len(read.weights), len(read.users[0]) if read.users else 0
        arrays = [_matrix(vectors, n, dimension) for vectors in (read.users, read.chosen, read.rejected)]
        others = arrays[0] if read.others is None else _matrix(read.others, n, dimension)
        held = np.zeros(n, bool) if read.held_out is None else np.array(read.held_out, bool)
    except (msgspec.DecodeError, ValueError) as error:
        raise BadEvent(f"no pairs: {error}") from None
    weights = np.array(read.weights, np.float32)
    if not n or len(held) != n or not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise BadEvent("no pairs: weights or held_out do not fit")
    users, chosen, rejected = arrays
    return Pairs(read.sequence, read.source_partition, read.space, users, others, chosen, rejected, weights, held)


def _matrix(vectors: list[list[float]], n: int, dimension: int) -> Floats:
    array = np.array(vectors, np.float32)
    if array.shape != (n, dimension) or not np.isfinite(array).all():
        raise ValueError(f"vectors of shape {array.shape}, ({n}, {dimension}) finite ones are wanted")
    return array


def _rounded(vectors: Floats) -> Floats:
    largest = float(np.abs(vectors).max(initial=0.0))
    decimals = DIGITS - 1 - int(np.floor(np.log10(largest))) if largest > 0 else 0
    return np.ascontiguousarray(np.round(vectors, min(max(decimals, 0), 20)))
