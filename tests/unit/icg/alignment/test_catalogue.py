import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from icg.alignment.catalogue import Catalogue, Choices, read_catalogue, read_choices
from icg.alignment.material import Asking


def test_rows_have_their_pictures_and_references_others(catalogue: Catalogue) -> None:
    assert len(catalogue) == 12
    red, green = (np.asarray(catalogue.picture(number).convert("RGB"))[32, 32].tolist() for number in (0, 1))
    assert red == [255, 0, 0]
    assert green == [0, 128, 0]
    (reference,) = catalogue.references[0]
    assert reference >= 12
    assert np.asarray(catalogue.picture(int(reference)).convert("RGB"))[32, 32].tolist() == green
    assert catalogue.texts(0)[:2] == ("a disc", "a picture of a disc")


def test_parquet_with_bytes_and_several_references(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(stream, "PNG")
    data = stream.getvalue()
    table = {"title": ["  two   words "], "image": [data], "reference": [[data, data]], "captions": [["flat"]]}
    pq.write_table(pa.table(table), tmp_path / "catalogue.parquet")
    read = read_catalogue(tmp_path / "catalogue.parquet")
    assert read.titles == ["two words"]
    assert read.references[0].tolist() == [1, 2]
    assert read.picture(2).size == (8, 8)
    assert read.texts(0)[-1] == "flat"


def test_what_a_row_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"title": "a", "image": "a.png"}\n{"title": " ", "image": "a.png"}\n')
    with pytest.raises(ValueError, match=r"c.jsonl, row 1: a title and an image are wanted"):
        read_catalogue(tmp_path / "c.jsonl")
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ValueError, match="without rows"):
        read_catalogue(tmp_path / "none.jsonl")


def test_choices_of_every_kind_of_file(tmp_path: Path) -> None:
    columns = {"user": np.array([7, 7, 3]), "chosen": np.array([0, 1, 2]), "rejected": np.array([1, 0, 0])}
    np.savez(tmp_path / "c.npz", **columns)
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    rows = [{name: int(column[place]) for name, column in columns.items()} for place in range(3)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("c.npz", "c.parquet", "c.jsonl"):
        read = read_choices(tmp_path / name, rows=3)
        assert read.users.tolist() == [1, 1, 0]
        assert read.chosen.tolist() == [0, 1, 2]
        assert read.people == 2
    with pytest.raises(ValueError, match="chosen has rows 0 to 2, the catalogue has 2"):
        read_choices(tmp_path / "c.npz", rows=2)
    np.savez(tmp_path / "short.npz", user=[1], chosen=[0])
    with pytest.raises(ValueError, match="has no column 'rejected'"):
        read_choices(tmp_path / "short.npz", rows=2)
    with pytest.raises(ValueError, match="choices of 0 users"):
        Choices(*(np.zeros(0, np.int64) for _ in range(3)))


def test_items_are_shown_as_they_are_published(catalogue: Catalogue) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(catalogue), (4000,), generator=generator)
    drawn = Asking().draw(catalogue, rows, generator)
    bare = drawn["text"] == 0
    missing = drawn["reference"] < 0
    assert missing.float().mean().item() == pytest.approx(0.40, abs=0.03)
    assert (~drawn["titled"]).float().mean().item() == pytest.approx(0.15, abs=0.03)
    assert bare.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not (missing & ~drawn["titled"]).any()
    some = [
        int(number) in catalogue.references[row].tolist()
        for row, number in zip(rows.tolist(), drawn["reference"].tolist(), strict=True)
        if number >= 0
    ]
    assert all(some)
