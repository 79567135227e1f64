"""User embeddings: a recommender's Parquet file, the map into our space, and the table of all imported users in S3.

The table `users/embeddings/{space}.parquet` is what segments are built from; Feast holds the same vectors for reading
one user at a time. Both name users, so both are
places that an erasure visits (`remove`, `workers.people`).
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workers.events import ID_PATTERN
from workers.exceptions import UserError
from workers.storage import ObjectStore

Vectors = NDArray[np.float32]

_ID = re.compile(ID_PATTERN)
_NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)


@dataclass(frozen=True)
class Users:
    """ids in order of the vectors [n, d]."""

    ids: list[str]
    vectors: Vectors

    def take(self, rows: list[int]) -> Users:
        return Users([self.ids[row] for row in rows], self.vectors[rows])


def read_file(path: Path) -> Users:
    """A Parquet file with the columns `user_id` (text or whole numbers) and `embedding` (list of numbers).

    Raises:
        UserError: with the first row (from 1) and column that is wrong.
    """
    try:
        file = pq.ParquetFile(path)
        missing = {"user_id", "embedding"} - set(file.schema_arrow.names)
        if missing:
            there = ", ".join(file.schema_arrow.names[:10])
            raise UserError(f"{path.name}: no column {' and no column '.join(sorted(missing))} (there are {there})")
        table = file.read(columns=["user_id", "embedding"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path.name}: not a Parquet file that can be read: {_line(error)}") from None
    if not table.num_rows:
        raise UserError(f"{path.name}: no users in it")
    return Users(_ids(path.name, table["user_id"]), _vectors(path.name, table["embedding"]))


def _ids(name: str, column: pa.ChunkedArray) -> list[str]:
    kind = column.type
    if pa.types.is_integer(kind):
        column = column.cast(pa.string())
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)):
        raise UserError(f"{name}: column user_id holds {kind}, not text or whole numbers")
    ids: list[Any] = column.to_pylist()
    seen: dict[str, int] = {}
    for row, user in enumerate(ids, 1):
        if user is None:
            raise UserError(f"{name}: row {row}, column user_id: empty")
        if not isinstance(user, str) or not _ID.match(user) or user in {".", ".."}:
            raise UserError(
                f"{name}: row {row}, column user_id: {str(user)[:60]!r} is no id (1 to 128 of A-Z a-z 0-9 . _ ~ -)"
            )
        if seen.setdefault(user, row) != row:
            raise UserError(f"{name}: row {row}, column user_id: {user!r} is in row {seen[user]} already")
    return ids


def _vectors(name: str, column: pa.ChunkedArray) -> Vectors:
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not any(test(kind.value_type) for test in _NUMBERS):
        raise UserError(f"{name}: column embedding holds {kind}, not lists of numbers")
    rows = column.to_pylist()
    length = next((len(row) for row in rows if row), 0)
    for number, row in enumerate(rows, 1):
        if not row:
            raise UserError(f"{name}: row {number}, column embedding: empty")
        if len(row) != length:
            raise UserError(f"{name}: row {number}, column embedding: {len(row)} numbers, the first row has {length}")
        if any(value is None for value in row):
            raise UserError(f"{name}: row {number}, column embedding: a number is missing")
    with np.errstate(over="ignore"):
        vectors = np.array(rows, np.float64).astype(np.float32)
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        raise UserError(f"{name}: row {int((~finite).argmax()) + 1}, column embedding: not a finite number")
    return vectors


@dataclass(frozen=True)
class Map:
    """Takes a recommender's embeddings [n, D] into our space [n, d]: `(x - mean) @ matrix`.

    Attributes:
        mean: [D].
        matrix: [D, d].
    """

    mean: Vectors
    matrix: Vectors

    @classmethod
    def fit(cls, vectors: Vectors, dimension: int) -> Map:
        """PCA whitening: the `dimension` directions of most variance, each with the same variance afterwards.

        A mapped user has a length of about 1, as the covers' embeddings in the space have. Directions in which the
        users do not differ, and those beyond the file's own dimension, become 0.
        """
        if len(vectors) < 2:
            raise UserError("a map needs at least two users to be fitted")
        wide = vectors.astype(np.float64)
        mean = wide.mean(0)
        _, scale, directions = np.linalg.svd(wide - mean, full_matrices=False)
        # Below a ten-thousandth of the largest deviation there is rounding noise, which whitening would blow up.
        kept = min(dimension, int((scale > 1e-4 * scale[0]).sum())) if scale[0] > 0 else 0
        if not kept:
            raise UserError("all users have the same embedding: there is nothing to map")
        # A singular vector's sign is the library's whim: the largest entry is made positive.
        signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])
        matrix = np.zeros((vectors.shape[1], dimension))
        deviation = scale[:kept] / np.sqrt(len(vectors))
        matrix[:, :kept] = (directions[:kept] * signs[:kept, None]).T / deviation / np.sqrt(kept)
        return cls(mean.astype(np.float32), matrix.astype(np.float32))

    def __call__(self, vectors: Vectors) -> Vectors:
        return np.asarray((vectors - self.mean) @ self.matrix, np.float32)

    @property
    def takes(self) -> int:
        return len(self.mean)

    def encode(self) -> bytes:
        """`map.safetensors`."""
        from safetensors.numpy import save

        return save({"mean": self.mean, "matrix": np.ascontiguousarray(self.matrix)})

    @classmethod
    def decode(cls, data: bytes) -> Map:
        from safetensors.numpy import load

        tensors = load(data)
        return cls(tensors["mean"], tensors["matrix"])


def table_key(space: str) -> str:
    return f"users/embeddings/{space}.parquet"


def load(store: ObjectStore, space: str) -> Users | None:
    """All imported users of a space, by id; None if there are none."""
    stored = store.get(table_key(space))
    return _decode(stored.data) if stored else None


def add(store: ObjectStore, space: str, users: Users) -> int:
    """Add users, or replace their vectors; how many the table holds now. Two imports at once both get in."""
    count = 0

    def change(data: bytes | None) -> bytes:
        nonlocal count
        before = _decode(data) if data else Users([], np.zeros((0, users.vectors.shape[1]), np.float32))
        merged = dict(zip(before.ids, before.vectors, strict=True)) | dict(zip(users.ids, users.vectors, strict=True))
        count = len(merged)
        ids = sorted(merged)
        return _encode(Users(ids, np.stack([merged[user] for user in ids])))

    store.update(table_key(space), change)
    return count


def remove(store: ObjectStore, user_id: str) -> int:
    """Take a user out of the tables of all spaces; out of how many.

    Raises:
        StorageFault: perhaps out of some, call again.
    """
    tables = 0
    for key in store.list("users/embeddings/"):
        found = False

        def change(data: bytes | None) -> bytes | None:
            nonlocal found
            users = _decode(data) if data else None
            found = users is not None and user_id in users.ids
            if users is None or not found:
                return None
            return _encode(users.take([row for row, user in enumerate(users.ids) if user != user_id]))

        store.update(key, change)
        tables += found
    return tables


def _encode(users: Users) -> bytes:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(users.vectors.ravel()), users.vectors.shape[1])
    sink = io.BytesIO()
    pq.write_table(pa.table({"user_id": pa.array(users.ids), "embedding": vectors}), sink, compression="zstd")
    return sink.getvalue()


def _decode(data: bytes) -> Users:
    table = pq.read_table(io.BytesIO(data))
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Users(table["user_id"].to_pylist(), np.asarray(flat, np.float32).reshape(table.num_rows, -1))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
