"""Between uint8 pictures, the models' [-1, 1] tensors, and contact sheets."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from icg.tiny.files import write_whole


def to_tensor(pixels: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 [n, height, width, 3] to float [n, 3, height, width] in [-1, 1]; white is 1."""
    return torch.as_tensor(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Float [n, 3, height, width] in [-1, 1] to uint8 [n, height, width, 3], clipped."""
    scaled = images.detach().float().cpu().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).numpy()


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of each image, [n], of pictures in [-1, 1]; all pixels count alike."""
    error = (images.clamp(-1, 1) - originals).square().mean(dim=(1, 2, 3)) / 4  # / 4: the range is 2 wide
    return -10 * torch.log10(error.clamp_min(1e-10))


def save_sheet(pixels: NDArray[np.uint8], columns: int, path: Path, scale: int = 2) -> None:
    """Write pictures [n, height, width, 3] row by row as one PNG, `scale` times enlarged, 2 grey pixels between."""
    rows = -(-len(pixels) // columns)
    height, width = pixels.shape[1] * scale, pixels.shape[2] * scale
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 160, dtype=np.uint8)
    for place, picture in enumerate(pixels):
        top, left = place // columns * (height + 2), place % columns * (width + 2)
        sheet[top : top + height, left : left + width] = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    write_whole(path, lambda partial: Image.fromarray(sheet).save(partial))
