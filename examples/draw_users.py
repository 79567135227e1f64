"""Makes `examples/users.parquet`: simulated users with embeddings, as a recommender would export them.

    python examples/draw_users.py [FILE]

400 people in 8 groups. A group is a direction in the space of 64 numbers; a person is the group's direction, a good
deal of their own, and length 1. Nobody in it is real, and nothing in the names tells the group.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUPS, DIMENSION, SEED = 8, 64, 20261121
SIZES = (74, 66, 58, 52, 46, 40, 36, 28)
OWN = 0.7
"""Length of what is a person's own, next to a group direction of length 1."""


def users(seed: int = SEED) -> pa.Table:
    """Columns `user_id` and `embedding`, in shuffled order."""
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.normal(size=(DIMENSION, GROUPS)))
    vectors = np.repeat(directions.T, SIZES, axis=0)
    own = rng.normal(size=vectors.shape)
    vectors = vectors + OWN * own / np.linalg.norm(own, axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors[rng.permutation(len(vectors))].astype(np.float32)
    ids = [f"reader-{number:04d}" for number in range(1, len(vectors) + 1)]
    flat = pa.array(vectors.ravel())
    return pa.table({"user_id": ids, "embedding": pa.FixedSizeListArray.from_arrays(flat, DIMENSION)})


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "users.parquet"
    table = users()
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    print(f"{table.num_rows} simulated users in {path}")
