"""Reference images: the same concept drawn by another artist family, never by the picture's own."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from icg.tiny.data import FAMILY, Pictures


def candidates(pictures: Pictures) -> list[NDArray[np.int64]]:
    """For each picture the rows that may be its reference; none where only one family drew the concept."""
    families = np.array([FAMILY[str(style)] for style in pictures.styles])
    rows_of = {concept: np.flatnonzero(pictures.concepts == concept) for concept in np.unique(pictures.concepts)}
    return [
        rows[families[rows] != family]
        for rows, family in zip((rows_of[concept] for concept in pictures.concepts), families, strict=True)
    ]


def draw(candidates: list[NDArray[np.int64]], rows: Tensor, generator: torch.Generator) -> Tensor:
    """A reference row for each of `rows`, [n] int64; -1 where there is none. Every candidate is equally likely."""
    chance = torch.rand(len(rows), generator=generator).tolist()
    drawn = [
        int(candidates[row][int(share * len(candidates[row]))]) if len(candidates[row]) else -1
        for row, share in zip(rows.tolist(), chance, strict=True)
    ]
    return torch.tensor(drawn)
