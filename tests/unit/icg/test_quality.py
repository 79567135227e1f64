from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icg.generator import CoverGenerator
from icg.item import Item
from icg.quality import agreement, clipped, quality
from icg.sampling import SamplerConfig

BOOKS = Path(__file__).resolve().parents[4] / "shared" / "data" / "standard_ebooks"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def picture_of(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))


def test_a_drawing_on_white_is_a_picture(picture):
    assert quality(picture) == 1.0


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 20, 20)])
def test_one_colour_is_none(colour):
    assert quality(Image.new("RGB", (64, 64), colour)) == 0.0


@pytest.mark.parametrize("deviation", [10, 40, 120])
def test_noise_is_none(rng, deviation):
    assert quality(picture_of(128 + deviation * rng.standard_normal((64, 64, 3)))) == 0.0


def test_grey_and_binary_noise_are_none(rng):
    grey = rng.integers(0, 256, (64, 64, 1)).repeat(3, axis=2)
    assert quality(picture_of(grey)) == 0.0
    assert quality(picture_of(255 * (grey > 128))) == 0.0


def test_a_picture_drowned_in_noise_is_none(picture, rng):
    drowned = np.asarray(picture, float) + 150 * rng.standard_normal((40, 56, 3))
    assert quality(picture_of(drowned)) < 0.5 < quality(picture_of(np.asarray(picture) + 10.0))


def test_a_decoder_out_of_its_range_is_none(rng):
    corners = 255.0 * (rng.random((8, 8, 3)) > 0.5)
    assert quality(picture_of(corners).resize((64, 64), Image.Resampling.NEAREST)) == 0.0


def test_nan_is_none():
    pixels = np.full((8, 8, 3), 0.5)
    pixels[0, 0, 0] = np.nan
    assert quality(pixels) == 0.0


def test_bytes_and_numbers_are_judged_alike(picture):
    assert quality(np.asarray(picture, np.float32) / 255) == quality(picture)


def test_what_is_no_picture_is_named():
    with pytest.raises(ValueError, match=r"shape \(8, 8\)"):
        quality(np.zeros((8, 8)))


def test_agreement_counts_both_directions():
    stripes = np.zeros((8, 8, 3))
    stripes[::2] = 1  # Disagrees down, agrees across.
    assert agreement(stripes) == pytest.approx(0, abs=1e-6)


def test_black_and_white_are_not_clipped():
    pixels = np.zeros((4, 4, 3))
    pixels[:2] = 1
    assert clipped(pixels) == 0.0
    pixels[0, :, 0] = 0  # cyan
    assert clipped(pixels) == 0.25


def test_covers_of_random_weights_pass(tiny, users):
    generator = CoverGenerator.from_pretrained(tiny, sampler=SamplerConfig(steps=4))
    context = generator.encode([Item("a whale"), Item("The Lantern at Night")])
    covers = generator.generate(context, [[None], [None]], [1, 2])
    assert all(quality(cover) >= 0.5 for row in covers for cover in row)


@pytest.mark.skipif(not BOOKS.is_dir(), reason="the artwork is not here")
def test_real_artwork_passes():
    scores = [quality(Image.open(path)) for path in sorted(BOOKS.glob("*.webp"))]
    assert len(scores) == 41
    assert min(scores) == 1.0
