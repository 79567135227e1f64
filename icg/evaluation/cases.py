"""What is judged: held-out people with vectors from their choices, and items of held-out concepts in four settings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from icg.evaluation.contenders.base import Case, Reader, Vector
from icg.evaluation.emoji import Gallery, reference_row
from icg.evaluation.people import Floats
from icg.evaluation.study import Study
from icg.preference import Head, estimate

Given = Literal["title", "reference", "both", "wrong_reference"]
"""What an item brings: its title alone, its picture alone, both, or the title with another concept's picture."""

GIVEN: tuple[Given, ...] = ("title", "reference", "both", "wrong_reference")
SEGMENTS = 8


def readers(
    study: Study, embeddings: NDArray[np.float32], head: Head, *, count: int, precision: float = 1.0, seed: int = 0
) -> list[Reader]:
    """The first `count` held-out people.

    Args:
        embeddings: [n, d], of the study's train pictures in the head's space.
        precision: of the estimate's prior; chosen on validation before the test split is looked at.
    """
    if count > len(study.held_out):
        raise ValueError(f"{count} people asked for, {len(study.held_out)} are held out")

    def vector(choices_of: Floats | NDArray[np.int64], rejected: NDArray[np.int64]) -> Vector:
        return estimate(head, embeddings[choices_of], embeddings[rejected], precision)

    trained = []
    for person in study.training.tolist():
        mine = study.choices.of(person)
        trained.append(vector(mine.chosen[:50], mine.rejected[:50]))
    centres = k_means(np.stack(trained), SEGMENTS, seed)
    people = study.held_out[:count].tolist()
    histories = [study.histories.of(person) for person in people]
    vectors = np.stack([vector(history.chosen, history.rejected) for history in histories])
    segments = nearest(vectors, centres)
    strangers = other_segment(segments, seed)
    return [
        Reader(
            person,
            vectors[k],
            centres[segments[k]].astype(np.float32),
            vectors[strangers[k]],
            tuple(study.train.image(int(row)) for row in histories[k].chosen),
            tuple(study.train.image(int(row)) for row in histories[k].rejected),
        )
        for k, person in enumerate(people)
    ]


def k_means(vectors: Floats | NDArray[np.float32], k: int, seed: int, rounds: int = 50) -> Floats:
    """Centres [k, d] of directions, each as long as its members' mean."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    rng = np.random.default_rng(seed)
    centres = unit[rng.choice(len(unit), size=min(k, len(unit)), replace=False)].astype(np.float64)
    label = nearest(unit, centres)
    for _ in range(rounds):
        for one in range(len(centres)):
            if (label == one).any():
                centres[one] = unit[label == one].mean(axis=0)
        before, label = label, nearest(unit, centres)
        if (before == label).all():
            break
    return np.stack(
        [vectors[label == one].mean(axis=0) if (label == one).any() else centres[one] for one in range(len(centres))]
    ).astype(np.float64)


def nearest(vectors: Floats | NDArray[np.float32], centres: Floats) -> NDArray[np.int64]:
    """Row of the centre with the largest cosine, [n]."""
    unit = centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
    return np.asarray((vectors @ unit.T).argmax(axis=1), np.int64)


def other_segment(segments: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """For each person somebody of another segment.

    Raises:
        ValueError: all are of one segment.
    """
    rng = np.random.default_rng(seed)
    found = []
    for one in segments:
        others = np.flatnonzero(segments != one)
        if not len(others):
            raise ValueError(
                f"all {len(segments)} people are of one segment, nobody can be mismatched with them: ask for more"
            )
        found.append(int(rng.choice(others)))
    return np.array(found, np.int64)


def cases(
    gallery: Gallery,
    concepts: Sequence[str],
    given: Given,
    people: Sequence[int],
    avoid: Sequence[frozenset[str]],
    seed: int = 0,
) -> tuple[list[Case], dict[tuple[int, int], int]]:
    """Items of these concepts; concepts whose every picture is by a family to avoid for somebody are left out.

    Args:
        people: numbers of the readers.
        avoid: for each of them the artist families that no reference of theirs may come from.

    Returns:
        The items, the same concepts for every `given`; and for (item, reader's place) the gallery's row of the
        reference, empty for "title".
    """
    pictures: dict[int, Image.Image] = {}

    def row_of(concept: str, families: frozenset[str]) -> int | None:
        return reference_row(gallery, concept, seed, families)

    whole = [concept for concept in concepts if all(row_of(concept, families) is not None for families in set(avoid))]
    made: list[Case] = []
    references: dict[tuple[int, int], int] = {}
    for place, concept in enumerate(whole):
        rows = gallery.rows(concept)
        shown: dict[int, Image.Image] = {}
        if given != "title":
            source = _another(whole, place, seed) if given == "wrong_reference" else concept
            for k, (person, families) in enumerate(zip(people, avoid, strict=True)):
                row = row_of(source, families)
                assert row is not None
                shown[person] = pictures.setdefault(row, gallery.image(row))
                references[place, k] = row
        title = None if given == "reference" else str(gallery.pictures.titles[rows[0]])
        made.append(Case(concept, int(gallery.topics[rows[0]]), title, shown))
    return made, references


def _another(concepts: Sequence[str], place: int, seed: int) -> str:
    """One of the other concepts, by hash."""
    if len(concepts) < 2:
        raise ValueError("one concept alone has no wrong reference")
    digest = hashlib.sha256(f"{seed}\nwrong\n{concepts[place]}".encode()).digest()
    step = 1 + int.from_bytes(digest[:8], "big") % (len(concepts) - 1)
    return concepts[(place + step) % len(concepts)]


def seeds(items: Sequence[Case], seed: int) -> list[int]:
    """One an item, by concept: the same whatever the setting, so that arms share their noise."""
    return [int.from_bytes(hashlib.sha256(f"{seed}\n{case.concept}".encode()).digest()[:7], "big") for case in items]
