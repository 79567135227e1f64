"""A drawn stand-in for the emoji pictures, for tests that must run where the data is not."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from icg.evaluation.emoji import Gallery, measure
from icg.tiny.data import FAMILY, Pictures

STYLES = tuple(FAMILY)


def drawing(concept: int, style: int) -> Image.Image:
    """A polygon of its own shape, place and hue for each concept; colour, outline and filling by style."""
    rng = np.random.default_rng([concept, style])
    shape = np.random.default_rng([concept])
    image = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(image)
    corners = int(shape.integers(3, 8))
    angles = np.sort(shape.uniform(0, 2 * np.pi, corners))
    radius = shape.uniform(14, 28, corners) * rng.uniform(0.9, 1.05)
    centre = 32 + shape.uniform(-4, 4, 2) + rng.uniform(-1, 1, 2)
    points = [(centre[0] + r * np.cos(a), centre[1] + r * np.sin(a)) for r, a in zip(radius, angles, strict=True)]
    hue, value = (shape.random() + 0.07 * style) % 1, 0.35 + 0.06 * style
    colour = [tuple(int(255 * x) for x in colorsys.hsv_to_rgb(hue, s, value)) for s in (0.2 + 0.08 * style, 0.3)]
    pen.polygon(points, fill=colour[0], outline="black", width=int(style % 4) + int(rng.integers(2)))
    if style % 2:
        pen.ellipse((centre[0] - 6, centre[1] - 6, centre[0] + 6, centre[1] + 6), fill=colour[1])
    return image


def drawn(concepts: range, styles: int = len(STYLES)) -> Gallery:
    rows = [(concept, style) for concept in concepts for style in range(styles)]
    pictures = Pictures(
        np.stack([np.asarray(drawing(*row)) for row in rows]),
        np.array([f"c{concept}" for concept, _ in rows]),
        np.array([f"thing {concept}" for concept, _ in rows]),
        np.array([STYLES[style] for _, style in rows]),
    )
    return Gallery(pictures, measure(pictures), np.array([concept % 3 for concept, _ in rows]))


@pytest.fixture(scope="session")
def train() -> Gallery:
    return drawn(range(40))


@pytest.fixture(scope="session")
def unseen() -> Gallery:
    return drawn(range(100, 120))
