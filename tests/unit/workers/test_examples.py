"""The examples that the project ships: a catalogue that can be drawn, and users that can be grouped."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from workers.catalogue import Entry, read
from workers.clustering import kmeans
from workers.embeddings import read_file
from workers.settings import References

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    catalogue = read(
        EXAMPLES / "catalogue.jsonl",
        "jsonl",
        images=EXAMPLES,
        address="s3://icg/references",
        first_version=1,
        limits=References(max_bytes=15_000),
    )
    assert catalogue.bad == []
    assert catalogue.ignored == set()
    return catalogue.entries


def test_the_catalogue_has_items_enough_each_with_a_picture_of_its_own(entries: list[Entry]) -> None:
    assert len(entries) >= 24
    assert len({entry.event.item_id for entry in entries}) == len(entries)
    assert len({entry.event.title for entry in entries}) == len(entries)
    pictures = {entry.picture.key for entry in entries if entry.picture}
    assert len(pictures) == len(entries)
    assert min(Counter(entry.event.category for entry in entries).values()) >= 3


def test_the_pictures_are_what_the_script_draws(entries: list[Entry]) -> None:
    drawing = script("draw_references")
    files = {path.stem: path for path in (EXAMPLES / "references").glob("*.webp")}
    assert set(files) == set(drawing.SCENES)
    for name, path in files.items():
        with Image.open(path) as image:
            assert image.size == (256, 256)
            stored = np.asarray(image.convert("RGB"), np.float32)
        drawn = np.asarray(drawing.draw(name), np.float32)
        assert np.abs(stored - drawn).mean() < 4, name  # WebP's loss is 0.5 to 2.5


def test_the_users_have_embeddings_that_fall_into_groups_of_their_own() -> None:
    users = read_file(EXAMPLES / "users.parquet")
    assert users.ids == [f"reader-{number:04d}" for number in range(1, 401)]
    assert users.vectors.shape == (400, 64)
    # Estimates from 50 choices under a standard normal prior: neither nothing nor nonsense.
    lengths = np.linalg.norm(users.vectors, axis=1)
    assert lengths.min() > 1
    assert lengths.max() < 5
    unit = users.vectors / lengths[:, None]
    assert min(kmeans(users.vectors, 8, seed=0).sizes) >= 20
    shuffled = np.random.default_rng(0).permuted(unit, axis=0)  # the same numbers, but nobody's
    assert _within(unit) < 0.95 * _within(shuffled)


def _within(vectors: np.ndarray) -> float:
    """Mean squared distance to the centre of one of 8 groups."""
    found = kmeans(vectors, 8, seed=0)
    return float(np.square(vectors - found.centres[found.labels]).sum(1).mean())
