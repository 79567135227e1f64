"""A file of items, JSONL or CSV, as `item-publish` events. Reads files; sends nothing.

Rows are numbered as an editor or a spreadsheet does: a JSONL row by its line, a CSV row with the header as row 1.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from workers.events import BadEvent, ItemPublish, explain, unique_keys
from workers.exceptions import UserError
from workers.records import canonical_json, sha256
from workers.settings import References

FileFormat = Literal["jsonl", "csv"]

FIELDS = frozenset(ItemPublish.model_fields)

# What a picture begins with, its ending and its media type. Its name is not asked: names lie.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "png", "image/png"),
    (b"\xff\xd8\xff", "jpg", "image/jpeg"),
    (b"RIFF", "webp", "image/webp"),
)


@dataclass(frozen=True)
class Picture:
    """A local reference image and where it will lie in object storage."""

    path: Path
    key: str
    content_type: str


@dataclass(frozen=True)
class Entry:
    """One good row: the event as it will be sent, and the picture to store before it."""

    row: int
    event: ItemPublish
    picture: Picture | None

    @property
    def event_id(self) -> str:
        """The same whenever the same row is published again: all of the event but the time counts."""
        return sha256(canonical_json(self.event.model_dump(mode="json", exclude={"time"})))


@dataclass(frozen=True)
class BadRow:
    row: int
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason}"


@dataclass
class Catalogue:
    """A whole file, read and checked."""

    entries: list[Entry] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)


class _Bad(ValueError):
    pass


def format_of(path: Path, given: FileFormat | None = None) -> FileFormat:
    """By the file's ending unless given.

    Raises:
        UserError: the ending says nothing.
    """
    if given:
        return given
    by_ending: dict[str, FileFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
    try:
        return by_ending[path.suffix.lower()]
    except KeyError:
        raise UserError(f"{path.name}: neither .jsonl nor .csv; say which with --format") from None


def read(
    path: Path,
    file_format: FileFormat,
    *,
    images: Path,
    address: str,
    first_version: int,
    limits: References,
) -> Catalogue:
    """Check every row of a file.

    Args:
        images: folder that relative paths in `reference_image` begin at, and may not leave.
        address: under which local pictures will lie: "s3://bucket/references".
        first_version: item_version of the first row that has none; each further one gets the next number.
        limits: of one picture, those of the covers service.

    Raises:
        UserError: the file cannot be read, or holds no rows.
    """
    catalogue = Catalogue()
    rows_of: dict[tuple[str, int], int] = {}
    pictures: dict[str, Picture] = {}
    version = first_version
    try:
        for row, values in _rows(path, file_format):
            try:
                if isinstance(values, _Bad):
                    raise values
                catalogue.ignored |= set(values) - FIELDS
                if values.get("item_version") is None:
                    values["item_version"] = version
                    version += 1
                picture = _picture(values, images, limits, pictures)
                if picture:
                    values["reference_image"] = f"{address}/{picture.key.rpartition('/')[2]}"
                event = ItemPublish.model_validate(values)
                before = rows_of.setdefault((event.item_id, event.item_version), row)
                if before != row:
                    raise _Bad(f"item {event.item_id} version {event.item_version} is in row {before} already")
                catalogue.entries.append(Entry(row, event, picture))
            except ValidationError as error:
                catalogue.bad.append(BadRow(row, explain(error)))
            except _Bad as error:
                catalogue.bad.append(BadRow(row, str(error)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x})") from None
    if not catalogue.entries and not catalogue.bad:
        raise UserError(f"{path}: no items in it")
    return catalogue


def _rows(path: Path, file_format: FileFormat) -> Iterator[tuple[int, dict[str, Any] | _Bad]]:
    with path.open(encoding="utf-8-sig", newline="" if file_format == "csv" else None) as file:
        if file_format == "csv":
            yield from _csv_rows(csv.reader(file, strict=True))
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _json_row(line)


def _json_row(line: str) -> dict[str, Any] | _Bad:
    try:
        values = json.loads(line, object_pairs_hook=unique_keys)
    except (json.JSONDecodeError, RecursionError) as error:
        return _Bad(f"not JSON: {error}")
    except ValueError as error:
        return _Bad(str(error))
    return values if isinstance(values, dict) else _Bad("not a JSON object")


def _csv_rows(reader: Any) -> Iterator[tuple[int, dict[str, Any] | _Bad]]:
    header: list[str] = []
    number = 0
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, _Bad(f"not CSV: {error}")
            return
        if not header:
            header = [name.strip() for name in cells]
            if "item_id" not in header:
                raise UserError(f"the first row names no column item_id (it begins {', '.join(header)[:80]})")
            twice = next((name for name in header if header.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"the first row names the column {twice!r} twice")
        elif len(cells) > len(header):
            yield number, _Bad(f"{len(cells)} cells under {len(header)} columns")
        elif any(cells):
            # An empty cell is an absent field. CSV knows no numbers, and the event's version is one.
            values: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=False) if cell.strip()}
            version = values.get("item_version", "").strip()
            if version.isdecimal() and len(version) < 20:
                values["item_version"] = int(version)
            yield number, values


def _picture(values: dict[str, Any], images: Path, limits: References, known: dict[str, Picture]) -> Picture | None:
    """The local picture that a row names, None if it names an address or nothing."""
    name = values.get("reference_image")
    if not isinstance(name, str) or "://" in name:
        return None
    if name not in known:
        known[name] = _local(name, images, limits)
    return known[name]


def _local(name: str, images: Path, limits: References) -> Picture:
    # A catalogue may come from somebody else: it must not send this machine's files away.
    path = (images / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(images.resolve()):
        raise _Bad(f"reference_image {name[:200]}: only paths inside {images.name or images}/ are read")
    try:
        if not path.is_file():
            raise _Bad(f"reference_image {name[:200]}: no such file in {images.name or images}/")
        size = path.stat().st_size
        data = path.read_bytes() if size <= limits.max_bytes else b""
    except OSError as error:
        raise _Bad(f"reference_image {name[:200]}: {error.strerror}") from None
    if size > limits.max_bytes:
        raise _Bad(f"reference_image {name[:200]}: {size:,} bytes, at most {limits.max_bytes:,}")
    _look(name, data, limits)
    for start, ending, content_type in _KINDS:
        if data.startswith(start) and (ending != "webp" or data[8:12] == b"WEBP"):
            return Picture(path, f"references/{sha256(data)}.{ending}", content_type)
    raise _Bad(f"reference_image {name[:200]}: not a PNG, JPEG or WebP picture")


def _look(name: str, data: bytes, limits: References) -> None:
    """Refuse what the covers service would refuse; an install without Pillow leaves that to the service."""
    try:
        from workers.pictures import check, decode
    except ImportError:
        return
    try:
        check(data, limits)
        decode(data)
    except BadEvent as error:
        raise _Bad(f"reference_image {name[:200]}: {str(error).removeprefix('reference image: ')}") from None
