"""What the stages learn from: pictures of items with titles, and who chose which of them. No labels.

A catalogue is a JSONL or Parquet file, one row a picture:

| column | is |
|---|---|
| `title` | the item's title |
| `image` | path of a picture of it, relative to the file; in Parquet also the encoded bytes |
| `reference` | optional: path (or bytes), or a list of them: what may be handed over as the item's reference |
| `captions` | optional: further texts for this picture, such as the title with words for how it is drawn |

Choices are a `.npz`, JSONL or Parquet file with three columns of numbers: `user` (any whole number), `chosen` and
`rejected` (rows of the catalogue, the first is 0): that user preferred the one picture to the other.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Integers = NDArray[np.int64]
TEMPLATES = ("a picture of {}", "a drawing of {}", "a small icon of {}")


@dataclass(frozen=True)
class Catalogue:
    """Pictures of items, and what else may serve as their references.

    Attributes:
        titles: of each of n rows.
        picture: opens picture k; 0 to n − 1 are the rows' own, further ones are references alone.
        references: for each row the numbers of pictures that may be its reference; may be empty.
        captions: for each row its texts beside the title; may be empty.
    """

    titles: Sequence[str]
    picture: Callable[[int], Image.Image]
    references: Sequence[Integers]
    captions: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        if not len(self.titles) == len(self.references) == len(self.captions):
            counts = f"{len(self.references)} rows of references, {len(self.captions)} of captions"
            raise ValueError(f"{len(self.titles)} titles, {counts}")
        if not len(self.titles):
            raise ValueError("a catalogue without rows")

    def __len__(self) -> int:
        return len(self.titles)

    def texts(self, row: int) -> tuple[str, ...]:
        """All that a row may be called, the bare title first."""
        title = self.titles[row]
        return (title, *(template.format(title) for template in TEMPLATES), *self.captions[row])


@dataclass(frozen=True)
class Choices:
    """Who preferred which row of a catalogue to which other, in the order in which they chose."""

    users: Integers  # [n], 0 to people − 1
    chosen: Integers  # [n]
    rejected: Integers  # [n]

    def __post_init__(self) -> None:
        if not len(self.users) == len(self.chosen) == len(self.rejected) > 0:
            counts = f"{len(self.chosen)} chosen, {len(self.rejected)} rejected"
            raise ValueError(f"choices of {len(self.users)} users: {counts}")

    def __len__(self) -> int:
        return len(self.users)

    @property
    def people(self) -> int:
        return int(self.users.max()) + 1


def read_catalogue(path: Path) -> Catalogue:
    """Read a catalogue file; pictures are opened when they are asked for.

    Raises:
        ValueError: naming the row and what it lacks.
    """
    rows = _rows(path)
    own: list[Any] = []
    further: list[Any] = []
    references = []
    for number, row in enumerate(rows):
        if not str(row.get("title") or "").strip() or not row.get("image"):
            raise ValueError(f"{path.name}, row {number}: a title and an image are wanted")
        own.append(row["image"])
        given = row.get("reference")
        listed = [] if given is None else list(given) if isinstance(given, (list, np.ndarray)) else [given]
        references.append(np.arange(len(listed), dtype=np.int64) + len(rows) + len(further))
        further += listed
    pictures = own + further

    def picture(number: int) -> Image.Image:
        source = pictures[number]
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else path.parent / str(source))

    captions = [[str(text) for text in row.get("captions") or ()] for row in rows]
    return Catalogue([" ".join(str(row["title"]).split()) for row in rows], picture, references, captions)


def read_choices(path: Path, rows: int) -> Choices:
    """Read choices among the `rows` rows of a catalogue; users are numbered 0 to people − 1 in the order of their ids.

    Raises:
        ValueError: a column is missing, or a row does not exist.
    """
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            columns = {name: np.asarray(arrays[name]) for name in arrays.files}
    else:
        table = _rows(path)
        columns = {name: np.array([row[name] for row in table]) for name in (table[0] if table else {})}
    if missing := {"user", "chosen", "rejected"} - columns.keys():
        raise ValueError(f"{path.name} has no column {sorted(missing)[0]!r}")
    chosen, rejected = (columns[name].astype(np.int64) for name in ("chosen", "rejected"))
    for name, column in (("chosen", chosen), ("rejected", rejected)):
        if len(column) and not 0 <= column.min() <= column.max() < rows:
            raise ValueError(f"{path.name}: {name} has rows {column.min()} to {column.max()}, the catalogue has {rows}")
    _, users = np.unique(columns["user"], return_inverse=True)
    return Choices(users.astype(np.int64), chosen, rejected)


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
