"""A frozen CLIP-style picture encoder and its preprocessing, differentiable from pixels on.

The processors of transformers work on numpy and cut the gradient; this resizes with torch, by the numbers in the
checkpoint's own `preprocessor_config.json`, and is the one way that pictures are seen here: the score that trained an
adapter and the score in a sidecar are the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil

SLOTS = 8
"""Pictures in every call of an encoder, so that a reward does not depend on how many are judged at once."""


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """[n, 3, height, width] in [0, 1]; all of one size."""
    return torch.stack([_tensor(image) for image in images])


def _tensor(image: Image.Image) -> Tensor:
    array = np.array(image.convert("RGB"), np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 255


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to `size`, the middle `crop` of it, then standardised per channel."""

    size: int
    crop: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        # The dictionary alone: of any processor, old or new file name, with torchvision or without.
        values, _ = CLIPImageProcessorPil.get_image_processor_dict(directory, local_files_only=True)
        wanted = values["size"]
        size = wanted if isinstance(wanted, int) else wanted.get("shortest_edge") or wanted["height"]
        crop = values.get("crop_size", size) if values.get("do_center_crop") else size
        crop = crop if isinstance(crop, int) else crop["height"]
        return cls(size, crop, tuple(values["image_mean"]), tuple(values["image_std"]))

    def __call__(self, images: Tensor) -> Tensor:
        """[n, 3, height, width] in [0, 1] to [n, 3, crop, crop]."""
        height, width = images.shape[-2:]
        if min(height, width) != self.size:
            scale = self.size / min(height, width)
            wanted = (round(height * scale), round(width * scale))
            images = functional.interpolate(images, wanted, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (images.shape[-2] - self.crop) // 2, (images.shape[-1] - self.crop) // 2
        images = images[..., top : top + self.crop, left : left + self.crop]
        mean, deviation = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.deviation))
        return (images - mean) / deviation
