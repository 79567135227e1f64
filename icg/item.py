"""What a cover is drawn for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Item:
    """Title and reference image of an item, either of which may be absent, not both.

    Raises:
        ValueError: if there is neither, or a title is no text or an image no picture of Pillow.
    """

    title: str | None = None
    image: Image | None = None

    def __post_init__(self) -> None:
        if self.title is not None and not isinstance(self.title, str):
            raise ValueError(f"title is {self.title!r}, a string is wanted")
        if self.title is not None and not _is_text(self.title):
            raise ValueError(f"title {self.title!r} is no text: half of a surrogate pair is in it")
        if self.image is not None and not hasattr(self.image, "convert"):
            raise ValueError(f"image is {self.image!r}, a picture of Pillow is wanted")
        if not (self.title and self.title.strip()) and self.image is None:
            raise ValueError("an item needs a title, an image or both")


def _is_text(title: str) -> bool:
    try:
        title.encode()
    except UnicodeEncodeError:
        return False
    return True
