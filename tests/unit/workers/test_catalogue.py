"""Files of items: every row is checked, named by its number, and nothing outside the folder is read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from workers.catalogue import Catalogue, format_of, read
from workers.exceptions import UserError
from workers.records import sha256
from workers.settings import References

GOOD = {"item_id": "a", "item_version": 3, "title": "The Lantern at Night"}


def picture(kind: str = "PNG", size: int = 8) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(data, kind)
    return data.getvalue()


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "items.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def checked(path: Path, **changes: Any) -> Catalogue:
    options = {
        "images": path.parent,
        "address": "s3://icg/references",
        "first_version": 1000,
        "limits": References(max_bytes=10_000, max_pixels=10_000),
    } | changes
    return read(path, format_of(path), **options)


def test_rows_become_events(tmp_path: Path) -> None:
    read_back = checked(jsonl(tmp_path, GOOD, "", {"item_id": "b", "title": "Pears", "category": "food"}))
    assert [(each.row, each.event.item_id, each.event.item_version) for each in read_back.entries] == [
        (1, "a", 3),
        (3, "b", 1000),
    ]
    assert not read_back.bad


def test_versions_that_are_not_given_grow(tmp_path: Path) -> None:
    found = checked(jsonl(tmp_path, *({"item_id": f"i{n}", "title": "x"} for n in range(3))))
    assert [each.event.item_version for each in found.entries] == [1000, 1001, 1002]


def test_the_same_row_has_the_same_id_whenever_it_is_read(tmp_path: Path) -> None:
    first, second = (checked(jsonl(tmp_path, GOOD)).entries[0] for _ in range(2))
    assert first.event.time != second.event.time
    assert first.event_id == second.event_id
    changed = checked(jsonl(tmp_path, GOOD | {"title": "Another"})).entries[0]
    assert changed.event_id != first.event_id


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ({"title": "No id"}, "item_id"),
        ({"item_id": "..", "title": "x"}, "item_id"),
        ({"item_id": "a b", "title": "x"}, "item_id"),
        (GOOD | {"title": "x" * 501}, "title"),
        (GOOD | {"title": 7}, "title"),
        (GOOD | {"title": "\ud800"}, "title"),
        (GOOD | {"action": "destroy"}, "action"),
        (GOOD | {"item_version": 0}, "item_version"),
        (GOOD | {"time": "2026-11-21T12:00:00"}, "time"),
        ({"item_id": "a"}, "title, a reference_image or both"),
        (GOOD | {"reference_image": "ftp://host/a.png"}, "reference_image"),
        (GOOD | {"reference_image": "missing.png"}, "no such file"),
        (GOOD | {"reference_image": "../secret.png"}, "only paths inside"),
        (GOOD | {"reference_image": "/etc/hostname"}, "only paths inside"),
        (GOOD | {"reference_image": "sub/link.png"}, "only paths inside"),
        (GOOD | {"reference_image": "text.png"}, "not a PNG, JPEG or WebP"),
        (GOOD | {"reference_image": "large.png"}, "at most 10,000"),
        (GOOD | {"reference_image": "sub"}, "no such file"),
        (GOOD | {"reference_image": "bomb.png"}, "pixels are more than 10,000"),
        (GOOD | {"reference_image": "cut.png"}, "the picture is broken"),
        (GOOD | {"reference_image": "moving.gif"}, "not a PNG, JPEG or WebP"),
        (GOOD | {"time": 1}, "time: a time is written as"),
        ('{"item_id": "a", "title": "x", "title": "y"}', "the key 'title' is there twice"),
    ],
)
def test_a_bad_row_is_named_with_its_reason(tmp_path: Path, row: Any, says: str) -> None:
    folder = tmp_path / "catalogue"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(picture())
    (folder / "sub" / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "text.png").write_text("not a picture")
    (folder / "bomb.png").write_bytes(picture(size=200))
    (folder / "cut.png").write_bytes(picture()[:-30])
    (folder / "moving.gif").write_bytes(picture("GIF"))
    (folder / "large.png").write_bytes(picture() + b"x" * 10_000)
    found = checked(jsonl(folder, GOOD | {"item_id": "before"}, row, GOOD | {"item_id": "after"}))
    assert [each.event.item_id for each in found.entries] == ["before", "after"]
    (bad,) = found.bad
    assert bad.row == 2
    assert says in bad.reason
    assert len(str(bad)) < 400


def test_the_same_version_twice_is_a_bad_row(tmp_path: Path) -> None:
    found = checked(jsonl(tmp_path, GOOD, GOOD | {"title": "Other"}, GOOD | {"item_version": 4}))
    assert [str(bad) for bad in found.bad] == ["row 2: item a version 3 is in row 1 already"]


@pytest.mark.parametrize(("kind", "ending"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_a_local_picture_becomes_an_address_by_its_bytes(tmp_path: Path, kind: str, ending: str) -> None:
    data = picture(kind)
    (tmp_path / "cover.bin").write_bytes(data)
    (entry,) = checked(jsonl(tmp_path, GOOD | {"reference_image": "cover.bin"})).entries
    assert entry.picture is not None
    assert entry.picture.key == f"references/{sha256(data)}.{ending}"
    assert entry.event.reference_image == f"s3://icg/{entry.picture.key}"


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,title,title\na,Pears,Plums\n")
    with pytest.raises(UserError, match="the column 'title' twice"):
        checked(path)


def test_addresses_are_left_as_they_are(tmp_path: Path) -> None:
    (entry,) = checked(jsonl(tmp_path, GOOD | {"reference_image": "https://example.org/a.png"})).entries
    assert entry.picture is None
    assert entry.event.reference_image == "https://example.org/a.png"


def test_csv_counts_rows_as_a_spreadsheet_does(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        'item_id,title,item_version,colour\na,"Two\nlines",1,red\nb,,2,\n\nc,Pears,x,\nd,Plum,,\ne,Fig,5,blue,extra\n',
        encoding="utf-8-sig",
    )
    found = checked(path)
    assert [(each.row, each.event.item_id) for each in found.entries] == [(2, "a"), (6, "d")]
    assert [bad.row for bad in found.bad] == [3, 5, 7]
    assert "title, a reference_image or both" in found.bad[0].reason
    assert "item_version" in found.bad[1].reason
    assert "5 cells under 4 columns" in found.bad[2].reason
    assert found.ignored == {"colour"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("items.txt", b"", "--format"),
        ("items.jsonl", b"\n\n", "no items"),
        ("items.jsonl", b"\xff\xfe\x00", "not UTF-8"),
        ("items.csv", b"id,title\n1,x\n", "item_id"),
        ("items.csv", b"", "no items"),
        ("absent.csv", None, "No such file"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        checked(tmp_path / name)
