"""The gate: is this a picture at all? From pixels alone; numpy, no torch, no reward that ever trained an adapter.

It asks three questions, each answered in [0, 1], and the answer is the least:

* not blank: the standard deviation of some channel is over 0.01 (nothing), better 0.03 (something);
* not noise: neighbouring pixels agree: their correlation is over 0.20 (independent pixels: 0), better 0.50;
* not clipped: pixels with every channel at its end, neither black nor white, are under 60 %, better under 30 %
  (a decoder driven out of its range paints in the corners of the colour cube).

What decided the thresholds, as (deviation, correlation, clipped), least to most:

* 2,860 emoji pictures on white: 0.017 to 0.50, 0.54 to 0.98, 0 to 0.23; all but one pass at 0.5 (a white square);
* 41 painted book covers: 0.11 to 0.36, 0.80 to 0.99, 0; all pass;
* 32 covers of `icg init tiny` with random weights: 0.15 to 0.17, 0.71 to 0.80, 0; all pass, blots though they are;
* one colour: 0; noise of any strength, grey or coloured: correlation under 0.03; 4x4 blocks of the colour cube's
  corners: 0.68 to 0.82 clipped; none passes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BLANK = (0.01, 0.03)  # standard deviation, pixels in [0, 1]
NOISE = (0.20, 0.50)  # correlation of neighbours
CLIPPED = (0.60, 0.30)  # share of pixels in a chromatic corner of the colour cube


def quality(image: Image.Image | NDArray[np.floating]) -> float:
    """How sure it is that this is a picture, in [0, 1]; under 0.5 it should not be published.

    Args:
        image: a picture, or an array [height, width, 3] of values in [0, 1].
    """
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255 if isinstance(image, Image.Image) else image
    if pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < 2:
        raise ValueError(f"a picture of shape {pixels.shape}: (height, width, 3) is wanted, at least 2x2")
    if not np.isfinite(pixels).all():
        return 0.0
    return min(
        _ramp(float(pixels.std((0, 1)).max()), *BLANK),
        _ramp(agreement(pixels), *NOISE),
        _ramp(clipped(pixels), *CLIPPED),
    )


def agreement(pixels: NDArray[np.floating]) -> float:
    """Correlation of neighbouring pixels, down and across; 1 where there is nothing to disagree."""
    centred = pixels - pixels.mean((0, 1))
    total = float((centred**2).mean())
    if total < 1e-8:
        return 1.0
    # Half the mean squared step between neighbours is variance times (1 - correlation).
    steps = [float((np.diff(centred, axis=axis) ** 2).mean()) for axis in (0, 1)]
    return 1 - sum(steps) / 4 / total


def clipped(pixels: NDArray[np.floating]) -> float:
    """Share of pixels whose channels all are at an end, and not all at the same."""
    low, high = pixels <= 1 / 255, pixels >= 254 / 255
    corner = (low | high).all(-1)
    return float((corner & ~low.all(-1) & ~high.all(-1)).mean())


def _ramp(value: float, bad: float, good: float) -> float:
    return float(np.clip((value - bad) / (good - bad), 0, 1))
