"""Pairs as the trainer gets them: vectors, no names.

    P(the first was preferred) = σ(score(user, chosen) − score(other, rejected) + (user − other)ᵀ V item)

`user` saw `chosen`, `other` saw `rejected`; they may be one person. Covers are less the mean of their item's covers,
which is `item`. The last term is what people think of the item itself, whatever its cover: the trainer keeps V to
itself, and what the item adds for everybody cancels. Impressions that nobody answered are in it as the neighbours of
those that were: pairs are a case-control sample of all impressions (Prentice and Breslow, 1978), up to two for each
answer, and what such a sample cannot tell, the item's own rate of clicks, is what nothing here asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from icg.preference import Head
from workers.events import BadEvent

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
BATCH = 32
"""Pairs of one step and one message: the streams are cut here, so every product has one shape and one rounding."""
VECTORS = ("users", "others", "chosen", "rejected", "items")
FLOATS = ("weights", "chosen_weights", "rejected_weights")
INTS = ("winners", "losers", "held_out")


@dataclass(frozen=True, slots=True)
class Rows:
    """n pairs as columns."""

    users: Floats  # [n, d]
    others: Floats
    chosen: Floats  # less `items`
    rejected: Floats
    items: Floats
    weights: Floats  # [n]
    chosen_weights: Floats  # of each side: inverse choice propensity over a uniform choice's
    rejected_weights: Floats
    winners: Ints  # the source partition's numbers of the people
    losers: Ints
    held_out: Ints  # 0: trains; 1, 2: judges, for the winner or the loser is held out

    def __len__(self) -> int:
        return len(self.weights)

    def columns(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in (*VECTORS, *FLOATS, *INTS)}

    def take(self, rows: NDArray[np.bool_] | Ints | slice) -> Rows:
        return Rows(**{name: column[rows] for name, column in self.columns().items()})

    def __add__(self, more: Rows) -> Rows:
        other = more.columns()
        return Rows(**{name: np.concatenate([column, other[name]]) for name, column in self.columns().items()})

    @classmethod
    def empty(cls, n: int, dimension: int) -> Rows:
        """n rows of zeros."""
        columns: dict[str, NDArray[Any]] = {name: np.zeros((n, dimension), np.float32) for name in VECTORS}
        columns |= {name: np.zeros(n, np.float32) for name in FLOATS}
        columns |= {name: np.zeros(n, np.int64) for name in INTS}
        return cls(**columns)

    def put(self, places: Ints, rows: Rows) -> None:
        """Write rows over those at `places`."""
        theirs = rows.columns()
        for name, column in self.columns().items():
            column[places] = theirs[name]


@dataclass(frozen=True, slots=True)
class Pairs:
    """A message of one source partition. `sequence` grows by one a message."""

    sequence: int
    partition: int
    space: str
    rows: Rows
    forget: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


class _Value(msgspec.Struct):
    """As `events.PreferencePairs`; bytes travel as base64."""

    time: str
    sequence: int
    source_partition: int
    space: str
    users: bytes
    others: bytes
    chosen: bytes
    rejected: bytes
    items: bytes
    weights: list[float]
    chosen_weights: list[float]
    rejected_weights: list[float]
    winners: list[int]
    losers: list[int]
    held_out: list[int]
    forget: list[int] = []


_decoder = msgspec.json.Decoder(_Value)
_encoder = msgspec.json.Encoder()


def interest(matrix: Floats, rows: Rows) -> Floats:
    """The item's own term of each margin, (user − other)ᵀ V item, [n]."""
    return np.asarray(((rows.users - rows.others) @ matrix * rows.items).sum(1), np.float32)


def margins(head: Head, users: Floats, chosen: Floats, others: Floats, rejected: Floats) -> Floats:
    """The covers' term, score(user, chosen) − score(other, rejected), [n]."""
    return head.score(users, chosen) - head.score(others, rejected)


def margins_of(head: Head, rows: Rows) -> Floats:
    """The same of rows."""
    return margins(head, rows.users, rows.chosen, rows.others, rows.rejected)


def lean(margin: Floats) -> Floats:
    """σ(−margin): how much a pair still pulls. Written with tanh it cannot overflow."""
    return np.asarray(0.5 * (1 - np.tanh(margin / 2)), np.float32)


def encode(pairs: Pairs, time: str) -> bytes:
    """As `events.PreferencePairs`, at `time`."""
    rows = pairs.rows.columns()
    columns: dict[str, Any] = {name: rows[name].astype("<f4").tobytes() for name in VECTORS}
    columns |= {name: rows[name].tolist() for name in (*FLOATS, *INTS)}
    value = _Value(time, pairs.sequence, pairs.partition, pairs.space, forget=list(pairs.forget), **columns)
    return _encoder.encode(value)


def decode(value: bytes | None) -> Pairs:
    """Read a message.

    Raises:
        BadEvent: no such event, or columns of other shapes, or not finite, or neither pairs nor people to forget.
    """
    if value is None:
        raise BadEvent("the message has no value")
    try:
        read = _decoder.decode(value)
        n = len(read.weights)
        columns: dict[str, NDArray[Any]] = {name: _matrix(getattr(read, name), n) for name in VECTORS}
        columns |= {name: _column(getattr(read, name), n) for name in FLOATS}
        ints: dict[str, NDArray[Any]] = {name: np.array(getattr(read, name), np.int64) for name in INTS}
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise BadEvent(f"no pairs: {error}") from None
    fits = all(column.shape == (n,) for column in ints.values())
    if not (n or read.forget) or not fits or len({columns[name].shape for name in VECTORS}) > 1:
        raise BadEvent("no pairs: columns do not fit")
    if n and not 0 <= ints["held_out"].min() <= ints["held_out"].max() <= 2:
        raise BadEvent("no pairs: held_out is 0, 1 or 2")
    rows = Rows(**columns, **ints)
    return Pairs(read.sequence, read.source_partition, read.space, rows, tuple(read.forget))


def _matrix(data: bytes, n: int) -> Floats:
    if len(data) % (4 * max(n, 1)) or (data and not n):
        raise ValueError(f"{len(data)} bytes are no {n} vectors")
    array = np.frombuffer(data, "<f4").astype(np.float32).reshape(n, -1 if n else 0)
    if not np.isfinite(array).all():
        raise ValueError("vectors that are not finite")
    return array


def _column(values: list[float], n: int) -> Floats:
    array = np.array(values, np.float32)
    if array.shape != (n,) or not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"weights of shape {array.shape}, ({n},) finite ones of at least 0 are wanted")
    return array
