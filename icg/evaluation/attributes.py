"""24 attributes of a picture, computed from its pixels: what simulated people have taste in.

Pixels and never labels: twelve global colour statistics already name the artist of an unseen emoji in 75 % of cases, so
a taste that were read from style names would measure a colour filter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]

NAMES = (
    "fill",
    "brightness",
    "contrast",
    "dark_share",
    "light_share",
    "saturation",
    "saturation_spread",
    "hue_cos",
    "hue_sin",
    "hue_spread",
    "colourfulness",
    "palette",
    "edge_density",
    "edge_strength",
    "outline_darkness",
    "line_weight",
    "flatness",
    "shading",
    "detail",
    "symmetry_left_right",
    "symmetry_top_bottom",
    "roundness",
    "elongation",
    "warmth",
)
SIDE = 64
"""Pictures are reduced to this side first, so that an attribute means the same at every size."""


def attributes(image: Image.Image) -> Floats:
    """Measure one picture.

    Args:
        image: any mode and size; read as RGB on white, reduced to 64 x 64.

    Returns:
        [24], raw (not standardised), in the order of `NAMES`, always finite.
    """
    rgb = np.asarray(_on_white(image).resize((SIDE, SIDE), Image.Resampling.BOX), np.float64) / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    inside = np.abs(rgb - 1).max(axis=2) > 0.06
    if not inside.any():
        inside = np.ones_like(inside)
    return np.concatenate([_colour(rgb, luma, inside), _texture(luma, inside), _shape(rgb, inside)])


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in {"RGBA", "LA", "P"}:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _colour(rgb: Floats, luma: Floats, inside: NDArray[np.bool_]) -> Floats:
    pixels, light = rgb[inside], luma[inside]
    high, low = pixels.max(axis=1), pixels.min(axis=1)
    saturation = (high - low) / np.maximum(high, 1e-6)
    red, green, blue = pixels.T
    hue = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)
    weight = (high - low) / max((high - low).sum(), 1e-6)
    hue_cos, hue_sin = float(weight @ np.cos(hue)), float(weight @ np.sin(hue))
    # Hasler and Suesstrunk 2003, "Measuring colorfulness in natural images".
    rg, yb = red - green, (red + green) / 2 - blue
    colourfulness = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    bins = np.bincount((np.minimum(pixels * 4, 3).astype(int) @ np.array([16, 4, 1])), minlength=64)
    share = bins[bins > 0] / bins.sum()
    return np.array(
        [
            inside.mean(),
            light.mean(),
            light.std(),
            (light < 0.25).mean(),
            (light > 0.8).mean(),
            saturation.mean(),
            saturation.std(),
            hue_cos,
            hue_sin,
            1 - np.hypot(hue_cos, hue_sin),
            colourfulness,
            -(share * np.log(share)).sum(),
        ]
    )


def _texture(luma: Floats, inside: NDArray[np.bool_]) -> Floats:
    down, across = np.gradient(luma)
    slope = np.hypot(down, across)
    spread = _window(luma**2) - _window(luma) ** 2
    rough = np.sqrt(np.maximum(spread, 0))
    border = inside & ~_eroded(inside)
    dark = luma < 0.3
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
    return np.array(
        [
            (slope[inside] > 0.1).mean(),
            slope[inside].mean(),
            1 - (luma[border].mean() if border.any() else luma.mean()),
            # Of the dark pixels, how many survive one erosion: 0 for hair lines, near 1 for areas.
            _eroded(dark).sum() / max(dark.sum(), 1),
            (rough[inside] < 0.01).mean(),
            ((rough[inside] >= 0.01) & (rough[inside] < 0.05)).mean(),
            np.log1p(100 * laplacian.var()),
        ]
    )


def _shape(rgb: Floats, inside: NDArray[np.bool_]) -> Floats:
    rows, columns = np.nonzero(inside)
    covariance = np.cov(np.stack([rows, columns])) if len(rows) > 2 else np.eye(2)
    small, large = np.maximum(np.linalg.eigvalsh(covariance), 1e-3)
    perimeter = (inside & ~_eroded(inside)).sum()
    return np.array(
        [
            1 - np.abs(rgb - rgb[:, ::-1]).mean(),
            1 - np.abs(rgb - rgb[::-1]).mean(),
            4 * np.pi * inside.sum() / max(perimeter, 1) ** 2,
            np.log(large / small),
            (rgb[..., 0] - rgb[..., 2])[inside].mean(),
        ]
    )


def _window(values: Floats) -> Floats:
    """Mean over 3 x 3 neighbours, edges repeated."""
    padded = np.pad(values, 1, mode="edge")
    height, width = values.shape
    parts = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.asarray(np.mean(parts, axis=0))


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    return padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
