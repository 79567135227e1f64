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
        ValueError: if there is neither.
    """

    title: str | None = None
    image: Image | None = None

    def __post_init__(self) -> None:
        if not (self.title and self.title.strip()) and self.image is None:
            raise ValueError("an item needs a title, an image or both")
