"""Contact sheets: what an adapter draws, to be looked at while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from icg.alignment.material import Asked, Material, evenly
from icg.alignment.student import Student
from icg.alignment.teacher import guided
from icg.sampling import begin, decode, denoise
from icg.tiny.pixels import save_sheet


@torch.no_grad()
def draw(material: Material, predict: Callable[[Tensor, Tensor], Tensor], seeds: Sequence[int]) -> NDArray[np.uint8]:
    """Pictures [n, height, width, 3] of a predictor (latents, t), one a seed, by the stack's own sampler."""
    rows, timesteps = begin(material.base, seeds, material.stack.sampler)
    latents = denoise(predict, rows, timesteps).latents
    pixels: NDArray[np.uint8] = decode(material.base, latents, material.stack.sampler).numpy()
    return pixels


def save_titles(
    model: Student, material: Material, path: Path, *, titles: int, guidance: float, rescale: float
) -> None:
    """Rows: the base guided by the title; the adapter given the title, the title and a picture, that picture alone.

    The last row is the picture itself. One column a title, one seed a column.
    """
    rows = evenly(material.rows_with_reference(), titles)
    references = [int(material.catalogue.references[row][0]) for row in rows]
    told = [material.catalogue.titles[row] for row in rows]
    seeds = list(range(len(rows)))
    text = material.texts(told)

    def teacher(noisy: Tensor, t: Tensor) -> Tensor:
        return guided(material.base, noisy, t, text, material.blank, guidance, rescale)

    drawn = [draw(material, teacher, seeds)]
    for titled, pictured in ((True, False), (True, True), (False, True)):
        asked = [
            Asked(title if titled else None, reference if pictured else None)
            for title, reference in zip(told, references, strict=True)
        ]
        with torch.no_grad():
            cond = material.condition(*model.adapter(model.features(material.prepared(asked))))
        drawn.append(draw(material, lambda noisy, t, cond=cond: material.base.predict(noisy, t, cond), seeds))  # type: ignore[misc]
    drawn.append(np.stack([np.asarray(material.pixels(reference)) for reference in references]))
    save_sheet(np.concatenate(drawn), len(rows), path)
    path.with_name("titles.txt").write_text("\n".join(told) + "\n")
