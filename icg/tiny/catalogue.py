"""The emoji pictures as a catalogue to train the adapter on."""

from __future__ import annotations

from PIL import Image

from icg.alignment.catalogue import Catalogue
from icg.tiny.captions import with_words
from icg.tiny.data import Pictures
from icg.tiny.references import candidates


def catalogue(pictures: Pictures) -> Catalogue:
    """Rows are pictures; a reference is the same concept by another artist family; captions say what pixels show."""

    def picture(number: int) -> Image.Image:
        return Image.fromarray(pictures.pixels[number])

    return Catalogue(
        titles=[str(title) for title in pictures.titles],
        picture=picture,
        references=candidates(pictures),
        captions=[(caption,) for caption in with_words(pictures)],
    )
