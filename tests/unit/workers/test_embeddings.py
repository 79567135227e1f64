"""A recommender's file of users, and the map into the space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.embeddings import Map, read_file
from workers.exceptions import UserError


def parquet(folder: Path, users: Any, embeddings: Any) -> Path:
    path = folder / "users.parquet"
    pq.write_table(pa.table({"user_id": users, "embedding": embeddings}), path)
    return path


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.int32())],
    ids=str,
)
def test_lists_of_any_kind_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    users = read_file(parquet(tmp_path, ["u1", "u2"], pa.array([[1, 2], [3, 4]], kind)))
    assert users.ids == ["u1", "u2"]
    assert users.vectors.dtype == np.float32
    assert users.vectors.tolist() == [[1, 2], [3, 4]]


def test_numbers_as_ids(tmp_path: Path) -> None:
    assert read_file(parquet(tmp_path, [7, 8], [[1.0], [2.0]])).ids == ["7", "8"]


@pytest.mark.parametrize(
    ("users", "embeddings", "says"),
    [
        (["a", None], [[1.0], [2.0]], "row 2, column user_id: empty"),
        (["a", "b c"], [[1.0], [2.0]], "row 2, column user_id: 'b c' is no id"),
        (["a", ".."], [[1.0], [2.0]], "row 2, column user_id"),
        (["a", "b", "a"], [[1.0], [2.0], [3.0]], "row 3, column user_id: 'a' is in row 1 already"),
        (["a", "b"], [[1.0, 2.0], [3.0]], "row 2, column embedding: 1 numbers, the first row has 2"),
        (["a", "b"], [[1.0], None], "row 2, column embedding: empty"),
        (["a", "b"], [[1.0], []], "row 2, column embedding: empty"),
        (["a", "b"], [[1.0], [None]], "row 2, column embedding: a number is missing"),
        (["a", "b"], [[1.0], [float("nan")]], "row 2, column embedding: not a finite number"),
        (["a", "b"], [[1.0], [1e300]], "row 2, column embedding: not a finite number"),
        ([1.5, 2.5], [[1.0], [2.0]], "column user_id holds double"),
        (["a", "b"], ["x", "y"], "column embedding holds string"),
        (["a", "b"], [["x"], ["y"]], "column embedding holds list"),
        (pa.array([], pa.string()), pa.array([], pa.list_(pa.float32())), "no users"),
    ],
)
def test_a_wrong_file_is_named_by_row_and_column(tmp_path: Path, users: Any, embeddings: Any, says: str) -> None:
    with pytest.raises(UserError) as error:
        read_file(parquet(tmp_path, users, embeddings))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_users_file(tmp_path: Path) -> None:
    text = tmp_path / "users.parquet"
    with pytest.raises(UserError, match="no such file"):
        read_file(text)
    text.write_text("user_id,embedding")
    with pytest.raises(UserError, match="not a Parquet file"):
        read_file(text)
    pq.write_table(pa.table({"id": ["a"], "vector": [[1.0]]}), text)
    with pytest.raises(UserError, match="no column embedding and no column user_id"):
        read_file(text)


def test_the_map_whitens_and_survives_its_file() -> None:
    rng = np.random.default_rng(0)
    raw = (rng.normal(size=(500, 12)) * np.linspace(0.1, 9, 12) + 5).astype(np.float32)
    mapping = Map.fit(raw, 8)
    mapped = mapping(raw)
    assert mapped.shape == (500, 8)
    assert np.allclose(mapped.mean(0), 0, atol=1e-5)
    # The eight directions have one variance, and a user a length of 1 on the average (root mean square).
    assert np.allclose(np.cov(mapped.T, bias=True), np.eye(8) / 8, atol=1e-5)
    assert np.sqrt(np.square(mapped).sum(1).mean()) == pytest.approx(1, abs=1e-4)
    again = Map.decode(mapping.encode())
    assert again.takes == 12
    assert np.array_equal(again(raw), mapped)
    assert mapping.encode() == Map.fit(raw, 8).encode()


def test_directions_without_difference_become_zero() -> None:
    raw = np.zeros((50, 3), np.float32)
    raw[:, 0] = np.arange(50)
    mapped = Map.fit(raw, 8)(raw)
    assert mapped.shape == (50, 8)
    assert np.square(mapped).sum(1).mean() == pytest.approx(1, abs=1e-4)
    assert not mapped[:, 1:].any()


@pytest.mark.parametrize("raw", [np.ones((1, 4)), np.ones((9, 4))], ids=["one user", "all the same"])
def test_a_map_that_cannot_be_fitted(raw: Any) -> None:
    with pytest.raises(UserError):
        Map.fit(raw.astype(np.float32), 8)
