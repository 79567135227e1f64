"""What the base is told of a picture: its title, bare or in a template, sometimes with words for what its pixels show.

No word names an artist or is computed from the name of a style; the words come from ranks of measures on pixels, so
they hold for any picture on white.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from icg.tiny.data import Pictures

TEMPLATES = ("{}", "a picture of {}", "a drawing of {}", "a small icon of {}")
BARE = 0.5  # share of captions without a template: what a pipeline is asked most
WITH_WORDS = 0.3  # share of captions that carry two or three attribute words


@dataclass(frozen=True)
class Word:
    """An attribute word and the part of the training pictures that it is said of."""

    word: str
    measure: str  # a key of `measure`
    low: float  # said where the measure's rank among training pictures, 0 to 1, is at least this
    high: float  # and at most this


WORDS = (
    Word("black and white", "saturation", 0.0, 0.15),
    Word("vivid", "saturation", 0.75, 1.0),
    Word("pale", "darkness", 0.0, 0.2),
    Word("dark", "darkness", 0.8, 1.0),
    Word("flat", "shading", 0.0, 0.3),
    Word("shaded", "shading", 0.75, 1.0),
    Word("simple", "detail", 0.0, 0.2),
    Word("detailed", "detail", 0.8, 1.0),
    Word("thick outline", "outline", 0.75, 1.0),
    Word("airy", "fill", 0.0, 0.2),
    Word("solid", "fill", 0.8, 1.0),
    Word("colourful", "hues", 0.85, 1.0),
)


def plain(title: str) -> list[str]:
    """The title in every template, bare first."""
    return [template.format(title) for template in TEMPLATES]


def with_words(pictures: Pictures, seed: int = 0) -> list[str]:
    """One caption a picture: its title, in a template or bare, and two or three words that hold for it, in any order.

    A picture of which fewer than two words hold gets those that do; ranks are taken among `pictures`.
    """
    random = np.random.default_rng(seed)
    measures = [measure(picture) for picture in pictures.pixels]
    ranks = {name: _ranks(np.array([one[name] for one in measures])) for name in measures[0]}
    captions = []
    for row, title in enumerate(pictures.titles):
        fitting = [word.word for word in WORDS if word.low <= ranks[word.measure][row] <= word.high]
        said = random.permutation(fitting)[: random.integers(2, 4)].tolist()
        template = TEMPLATES[0] if random.random() < BARE else TEMPLATES[random.integers(1, len(TEMPLATES))]
        captions.append(", ".join([template.format(title), *said]))
    return captions


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank of each value, 0 to 1; equal values share their middle rank."""
    ranks: NDArray[np.float64] = (stats.rankdata(values) - 1) / max(1, len(values) - 1)
    return ranks


def measure(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Measures of one picture [height, width, 3] on white, each the greater the more of it there is."""
    image: NDArray[np.float32] = pixels.astype(np.float32) / np.float32(255)
    drawn = image.min(axis=2) < 0.97
    if not drawn.any():
        drawn[:] = True
    light = image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    colour = image.max(axis=2) - image.min(axis=2)
    step = np.hypot(ndimage.sobel(light, axis=0), ndimage.sobel(light, axis=1)) / 4
    silhouette = ndimage.binary_fill_holes(drawn)
    rim = silhouette & ~ndimage.binary_erosion(silhouette, iterations=3)
    return {
        "saturation": float(colour[drawn].mean()),
        "darkness": 1 - float(light[drawn].mean()),
        "shading": float(((step > 0.004) & (step < 0.06))[drawn].mean()),  # slow change: neither flat nor an edge
        "detail": float((step > 0.15).mean()),
        "outline": float((light < 0.35)[rim].mean()),
        "fill": float(silhouette.mean()),
        "hues": float(_hue_spread(image, colour, drawn)),
    }


def _hue_spread(image: NDArray[np.float32], colour: NDArray[np.float32], drawn: NDArray[np.bool_]) -> float:
    """1 - length of the mean hue vector, over the coloured pixels; 0 where there are none."""
    coloured = drawn & (colour > 0.15)
    if coloured.mean() < 0.02:
        return 0.0
    red, green, blue = (image[..., channel][coloured] for channel in range(3))
    hue = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)
    return 1 - float(np.hypot(np.cos(hue).mean(), np.sin(hue).mean()))
