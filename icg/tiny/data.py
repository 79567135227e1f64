"""The emoji pictures as arrays, cut by concept into train, validation and test.

The parquet file's own split is by concept, near-synonyms on one side. Validation is cut here from its train part in the
same spirit: concepts whose titles differ only in a general word ("dog", "dog face") or a direction go together. Test is
for reporting; every look at it is written down.
"""

import hashlib
import io
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from icg.tiny.files import CACHE, fingerprint, write_whole

Split = Literal["train", "val", "test"]

VAL_SHARE = 0.08  # of the train concepts: about 90 concepts and 800 pictures

# Styles that share drawings or descent count as one artist (data README): a reference never comes from the own family.
FAMILY = {
    "fluent_3d": "fluent",
    "fluent_flat": "fluent",
    "fluent_hc": "fluent",
    "noto": "noto",
    "blobmoji": "noto",
    "emojitwo": "emojitwo",
    "emojitwo_bw": "emojitwo",
    "fxemoji": "fxemoji",
    "twemoji": "twemoji",
    "serenity_pixel": "serenity_pixel",
}

_GENERAL = {"face", "button", "symbol", "sign", "mark", "left", "right", "up", "down", "tilted", "with", "of", "the"}

_ONE_WAY = re.compile(
    r"left|right|clockwise|o.clock|-thirty|keycap|button|letter|latin|number|input|arrow|index|flag|note|calendar|"
    r"newspaper|page|card|sign|mark|dollar|euro|yen|pound|percent|question|copyright|registered|information|medal|"
    r"north|south|east|west|abc|sos|zzz|100|hundred|map|receipt|abacus|clock|watch"
)


@dataclass(frozen=True)
class Pictures:
    """Pictures with what is known of them; row i of every field is picture i.

    The style is there to choose references and to measure. No caption and no training input carries it.
    """

    pixels: NDArray[np.uint8]  # [n, height, width, 3], RGB on white
    concepts: NDArray[np.str_]  # [n], code point of the concept
    titles: NDArray[np.str_]  # [n]
    styles: NDArray[np.str_]  # [n], a key of FAMILY

    def __len__(self) -> int:
        return len(self.pixels)

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Pictures":
        """The pictures that a mask or an array of row numbers picks."""
        return Pictures(self.pixels[chosen], self.concepts[chosen], self.titles[chosen], self.styles[chosen])


def load(path: Path, split: Split, cache: Path = CACHE) -> Pictures:
    """Read one split, decoded once and kept as an uncompressed array.

    Args:
        path: the parquet file.
        split: "train" and "val" are parts of the file's train split, disjoint by concept.
        cache: folder of the decoded copy; it is named by the file's hash.
    """
    kept = cache / f"pictures-{fingerprint(path)}.npz"
    if not kept.exists():
        arrays = _decode(path)
        write_whole(kept, lambda partial: np.savez(partial, allow_pickle=False, **arrays))
    with np.load(kept) as arrays:
        chosen = arrays["splits"] == split
        return Pictures(*(arrays[name][chosen] for name in ("pixels", "concepts", "titles", "styles")))


def load_test(path: Path, why: str, cache: Path = CACHE) -> Pictures:
    """Read the test split and add the look, with its reason, to `test_looks.jsonl` in the cache."""
    look = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "why": why}
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "test_looks.jsonl").open("a") as log:
        log.write(json.dumps(look) + "\n")
    return load(path, "test", cache)


def is_validation(title: str) -> bool:
    """Whether a train title is held out, by hash of its telling words, so that it never depends on the other rows."""
    words = re.findall(r"[a-z0-9]+", title.lower())
    telling = sorted(set(words) - _GENERAL) or sorted(words)
    digest = hashlib.sha256(" ".join(telling).encode()).digest()
    return int.from_bytes(digest[:4], "big") < VAL_SHARE * 2**32


def mirrorable(title: str) -> bool:
    """Whether a mirrored picture still shows its title: no letters, digits, hands of a clock or direction in it."""
    return not _ONE_WAY.search(title.lower())


def _decode(path: Path) -> dict[str, NDArray[np.uint8] | NDArray[np.str_]]:
    table = pq.read_table(path, columns=["codepoint", "title", "style", "split", "image_webp"]).to_pydict()
    splits = [
        "val" if split == "train" and is_validation(title) else split
        for split, title in zip(table["split"], table["title"], strict=True)
    ]
    pixels = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in table["image_webp"]]
    return {
        "pixels": np.stack(pixels),
        "concepts": np.array(table["codepoint"], dtype=np.str_),
        "titles": np.array(table["title"], dtype=np.str_),
        "styles": np.array(table["style"], dtype=np.str_),
        "splits": np.array(splits, dtype=np.str_),
    }
