"""Makes `examples/users.parquet`: simulated users with embeddings, as a recommender would export them.

    python examples/draw_users.py --model MODEL [FILE]

400 of the simulated people whose choices trained icg-tiny's preference model (`python -m icg.evaluation.study NPZ`).
An embedding is what icg-tiny estimates of a person from 50 choices between two pictures, so it means something to its
adapter. Nobody in it is real, and nothing in the names tells who is like whom.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from icg.alignment.catalogue import read_choices
from icg.alignment.people import PeopleConfig, estimate_people
from icg.preference import Head
from icg.rewards.preference import CoverEncoder
from icg.tiny.data import load
from icg.tiny.files import CACHE, DATA

USERS, SEED = 400, 20261121


@torch.no_grad()
def users(model: Path, choices: Path, data: Path) -> pa.Table:
    """Columns `user_id` and `embedding`, in shuffled order.

    Args:
        model: a folder with `space/` and `preference/`, `icg init tiny` writes it.
    """
    pictures = load(data, "train")
    encoder = CoverEncoder.from_pretrained(model / "space")
    pixels = torch.from_numpy(pictures.pixels).permute(0, 3, 1, 2) / 255
    embeddings = torch.cat([encoder(part) for part in pixels.split(128)]).numpy()
    chosen = read_choices(choices, len(pictures))
    people = estimate_people(chosen, Head.load(model / "preference"), embeddings, PeopleConfig())
    some = np.random.default_rng(SEED).permutation(len(people))[:USERS]
    ids = [f"reader-{number:04d}" for number in range(1, len(some) + 1)]
    flat = pa.array(people.whole[some].astype(np.float32).ravel())
    return pa.table({"user_id": ids, "embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).parent / "users.parquet")
    parser.add_argument("--model", type=Path, required=True, help="what `icg init tiny` wrote")
    parser.add_argument("--choices", type=Path, default=CACHE / "choices.npz")
    parser.add_argument("--data", type=Path, default=DATA, help="the emoji parquet file")
    given = parser.parse_args()
    table = users(given.model, given.choices, given.data)
    pq.write_table(table, given.file, compression="zstd", use_dictionary=False)
    print(f"{table.num_rows} simulated users in {given.file}")


if __name__ == "__main__":
    main()
