"""Pictures that the tests draw themselves: the real data may be absent."""

import colorsys
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from icg.tiny.caption_states import CaptionStates, compute
from icg.tiny.data import Pictures

TITLES = ("red apple", "blue car", "green tree", "yellow sun", "black cat", "pink flower", "orange fish", "grey stone")
STYLES = ("noto", "twemoji", "emojitwo_bw")


Draw = Callable[[int, str], NDArray[np.uint8]]


def draw(number: int, style: str, size: int = 64) -> NDArray[np.uint8]:
    """A polygon of `number` + 3 corners: filled, filled with a rim, or a black outline."""
    image = Image.new("RGB", (size, size), "white")
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(number / len(TITLES), 0.9, 0.8))
    fill, outline = {
        "noto": ((red, green, blue), None),
        "twemoji": ((red, green, blue), "black"),
        "emojitwo_bw": (None, "black"),
    }[style]
    around = (size / 2, size / 2, size * 0.4)
    ImageDraw.Draw(image).regular_polygon(around, number + 3, fill=fill, outline=outline, width=5)
    return np.asarray(image)


@pytest.fixture(scope="session")
def drawing() -> Draw:
    """The function that draws concept `number` in a style."""
    return draw


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    """Eight titles in three styles."""
    rows = [(number, title, style) for number, title in enumerate(TITLES) for style in STYLES]
    return Pictures(
        pixels=np.stack([draw(number, style) for number, _, style in rows]),
        concepts=np.array([f"1f{number}" for number, _, _ in rows]),
        titles=np.array([title for _, title, _ in rows]),
        styles=np.array([style for _, _, style in rows]),
    )


@pytest.fixture(scope="session")
def captions(pictures: Pictures) -> CaptionStates:
    """MiniLM's states of the captions of `pictures`."""
    return compute(pictures)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A file of the emoji data's columns: 60 train concepts, 5 test concepts, two styles of each."""
    titles = [f"thing{number}" for number in range(60)] + [f"secret{number}" for number in range(5)]
    rows = [(number, title, style) for number, title in enumerate(titles) for style in ("noto", "twemoji")]

    def webp(number: int, style: str) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(draw(number % 8, style)).save(stream, "WEBP", lossless=True)
        return stream.getvalue()

    table = {
        "codepoint": [str(number) for number, _, _ in rows],
        "title": [title for _, title, _ in rows],
        "style": [style for _, _, style in rows],
        "split": ["test" if title.startswith("secret") else "train" for _, title, _ in rows],
        "image_webp": [webp(number, style) for number, _, style in rows],
    }
    path = tmp_path / "emoji.parquet"
    pq.write_table(pa.table(table), path)
    return path
