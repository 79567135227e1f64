import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icg.tiny.data import is_validation, load, load_test, mirrorable

Draw = Callable[[int, str], NDArray[np.uint8]]


def test_splits_share_no_concept_and_lose_no_picture(parquet: Path, tmp_path: Path) -> None:
    train, held_out = load(parquet, "train", tmp_path), load(parquet, "val", tmp_path)
    test = load_test(parquet, "a test of the split", tmp_path)

    concepts = [set(part.concepts) for part in (train, held_out, test)]
    assert all(concepts)
    assert not concepts[0] & concepts[1]
    assert not concepts[0] & concepts[2]
    assert not concepts[1] & concepts[2]
    assert len(train) + len(held_out) + len(test) == 2 * 65
    assert {str(title)[:6] for title in test.titles} == {"secret"}


def test_pixels_are_those_of_the_file(parquet: Path, tmp_path: Path, drawing: Draw) -> None:
    train = load(parquet, "train", tmp_path)
    for pixels, concept, style in zip(train.pixels, train.concepts, train.styles, strict=True):
        np.testing.assert_array_equal(pixels, drawing(int(concept) % 8, str(style)))


def test_a_decoded_copy_is_read_again(parquet: Path, tmp_path: Path) -> None:
    first = load(parquet, "train", tmp_path)
    (kept,) = tmp_path.glob("pictures-*.npz")
    written = kept.stat().st_mtime_ns
    again = load(parquet, "train", tmp_path)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert kept.stat().st_mtime_ns == written


def test_every_look_at_the_test_split_is_written_down(parquet: Path, tmp_path: Path) -> None:
    load(parquet, "val", tmp_path)
    load_test(parquet, "first", tmp_path)
    load_test(parquet, "second", tmp_path)
    looks = [json.loads(line) for line in (tmp_path / "test_looks.jsonl").read_text().splitlines()]
    assert [look["why"] for look in looks] == ["first", "second"]


def test_near_synonyms_lie_on_one_side() -> None:
    pairs = [
        (f"{animal}", f"{animal} face") for animal in ("dog", "cat", "owl", "rabbit", "horse", "crocodile", "hook")
    ]
    pairs += [(f"{thing} tilted left", f"{thing} tilted right") for thing in ("magnifying glass", "axe", "crown")]
    assert all(is_validation(one) == is_validation(other) for one, other in pairs)
    assert {is_validation(one) for one, _ in pairs} == {True, False}


def test_letters_and_directions_are_not_mirrored() -> None:
    one_way = ("left arrow", "backhand index pointing right", "keycap: 2", "three o’clock", "eight-thirty", "OK button")
    assert not any(mirrorable(title) for title in one_way)
    assert all(mirrorable(title) for title in ("dog face", "red apple", "grinning face", "sailboat"))
