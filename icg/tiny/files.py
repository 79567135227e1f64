"""Where the stages keep their work, and files that are whole or not there.

Everything lies outside the checkout, under the user's cache folder, one folder a stage.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

CACHE = Path.home() / ".cache" / "icg" / "tiny"
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "emoji" / "emoji_64.parquet"

SHIPPED = Path(__file__).parent / "weights"
"""icg-tiny as it was trained, see MODEL_CARD.md there."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbouring temporary file, then rename it: a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    write(partial)
    partial.replace(path)


def fingerprint(path: Path) -> str:
    """First 16 hex digits of the file's sha256: names what was computed from it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
