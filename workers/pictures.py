"""Whether bytes are a picture that covers can be drawn from, and its pixels. Pillow alone: no network, no torch.

`check` reads the header and is cheap; `decode` reads all pixels, which only a picture that `check` let through may ask.
"""

from __future__ import annotations

import io

from PIL import Image, ImageOps, UnidentifiedImageError

from workers.events import BadEvent
from workers.settings import References

FORMATS = ("PNG", "JPEG", "WEBP")
LONGEST_SIDE = 1024
"""A decoded picture is made no larger: the image processors of multimodal models look at fewer pixels than that."""


def check(data: bytes, limits: References) -> tuple[int, int]:
    """Format and size from the header alone, before any pixel is decoded.

    Returns:
        (width, height) in pixels.

    Raises:
        BadEvent: not a PNG, JPEG or WebP, or more pixels than allowed.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # Pillow's own limit: 179 million
        raise BadEvent(f"reference image: more than {limits.max_pixels:,} pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise BadEvent("reference image: not a PNG, JPEG or WebP picture") from None
    if width * height > limits.max_pixels:
        raise BadEvent(f"reference image: {width} x {height} pixels are more than {limits.max_pixels:,}")
    return width, height


def decode(data: bytes) -> Image.Image:
    """Checked bytes as an upright RGB picture, transparency on white, no side longer than `LONGEST_SIDE`.

    Raises:
        BadEvent: the picture is broken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
            image.load()
            upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            layer = upright.convert("RGBA")
            upright = Image.new("RGBA", layer.size, "white")
            upright.alpha_composite(layer)
        rgb = upright.convert("RGB")
        rgb.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        return rgb
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        raise BadEvent("reference image: the picture is broken") from None
