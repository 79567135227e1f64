"""The covers that `bench/closed_loop.py` chooses among, drawn beforehand, and the people whom it simulates.

Two pools. *Drawn*: a model directory draws, for every validation concept of the emoji, one cover a segment, the neutral
cover and eight shared ones (neutral, other noise). *Planted*: the concept's real pictures stand for covers, and a
segment's cover is the one that the preference model says it likes best: what a generator would be worth that draws as
artists do and is told the preference model's mind. Planted without a model directory, the 24 attributes themselves are
the embedding, turned and padded to 64 numbers: a perfect encoder, a ceiling.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from icg.evaluation.attributes import NAMES, attributes
from icg.evaluation.choices import FEWEST, MOST, choose
from icg.evaluation.contenders.oracle import several
from icg.evaluation.emoji import TOPICS, Gallery, reference_row
from icg.evaluation.people import Population, WithinConcept
from icg.preference import Head, estimate
from workers.clustering import kmeans, merge_small

Floats = NDArray[np.float32]

DIMENSION = 64
SHARED = 8
LEAST_PICTURES = 5
"""Of a concept in a planted pool: under it there is nothing to choose among."""


class Encoder(Protocol):
    """Covers to what the learner is told of them."""

    def __call__(self, raw: NDArray[np.float64], concepts: list[str], images: list[Image.Image]) -> Floats:
        """Raw attributes [n, 24] and pictures to [n, d]."""
        ...


@dataclass(frozen=True)
class Perfect:
    """The attributes within the concept, turned into 64 dimensions: |c| is about 1."""

    within: WithinConcept

    def __call__(self, raw: NDArray[np.float64], concepts: list[str], images: list[Image.Image]) -> Floats:
        turn, _ = np.linalg.qr(np.random.default_rng(24).normal(size=(DIMENSION, len(NAMES))))
        return np.asarray(self.within.each(raw, concepts) @ turn.T / np.sqrt(len(NAMES)), np.float32)


@dataclass(frozen=True)
class Covers:
    """Of one item."""

    title: str
    topic: int
    pictures: NDArray[np.float64]  # [n, 24], standardised within the concept: what people see
    embeddings: Floats  # [n, d]: what the learner is told
    neutral: int
    segments: tuple[int, ...]  # the cover of each segment
    shared: tuple[int, ...]  # SHARED covers of nobody in particular, the neutral one first


@dataclass(frozen=True)
class Crowd:
    """Simulated people and what a recommender would know of them."""

    people: Population
    vectors: Floats  # [n, d], estimated from 5 to 50 choices among train pictures


@dataclass(frozen=True)
class Pictures:
    """The emoji, as people and as the encoder see them."""

    train: Gallery
    held: Gallery
    within: WithinConcept  # of both
    embeddings: Floats  # [n, d], of the train pictures that histories are made of

    def crowd(self, count: int, seed: int, head: Head) -> Crowd:
        """People of other kinds for every seed, and their vectors under a head."""
        seen = self.within.each(self.train.raw, self.train.pictures.concepts.tolist())
        people = Population.drawn(count, len(TOPICS), seed, archetypes=12)
        people = people.calibrated(seen, self.train.topics, self.train.pictures.concepts)
        rng = np.random.default_rng([seed, 1])
        few = np.exp(rng.uniform(np.log(FEWEST), np.log(MOST + 1), size=count)).astype(np.int64)
        told = choose(people, self.train, seen, np.minimum(few, MOST), seed + 1)
        vectors = [
            estimate(head, self.embeddings[mine.chosen], self.embeddings[mine.rejected])
            for mine in map(told.of, range(count))
        ]
        return Crowd(people, np.stack(vectors).astype(np.float32))


def segments_of(vectors: Floats, groups: int = 8, k_min: int = 20) -> tuple[Floats, NDArray[np.int64]]:
    """The segments' vectors [k, d] and each person's segment [n], as `icg segments build` finds them."""
    found = merge_small(vectors, kmeans(vectors, groups, 0), min(k_min, len(vectors)))
    return found.centres, found.labels


def planted(world: Pictures, encoder: Encoder, head: Head, segments: Floats, items: int = 0) -> list[Covers]:
    """Real pictures as covers."""
    made = []
    for concept in _chosen(world.held, items):
        rows = world.held.rows(concept)
        images = [world.held.image(int(row)) for row in rows]
        embeddings = encoder(world.held.raw[rows], [concept] * len(rows), images)
        order = np.random.default_rng(_number(concept)).permutation(len(rows))
        best = head.score(segments[:, None], embeddings[None]).argmax(axis=1)
        made.append(
            Covers(
                title=str(world.held.pictures.titles[rows[0]]),
                topic=int(world.held.topics[rows[0]]),
                pictures=world.within(world.held.raw[rows], concept),
                embeddings=embeddings,
                neutral=int(order[0]),
                segments=tuple(best.tolist()),
                shared=tuple(order[:SHARED].tolist()),
            )
        )
    return made


def drawn(world: Pictures, encoder: Encoder, model: Path, segments: Floats, items: int = 0) -> list[Covers]:
    """Covers of a model directory, with the items' titles and reference images."""
    from icg import CoverGenerator, Item

    generator = CoverGenerator.from_pretrained(model)
    made = []
    for concept in _chosen(world.held, items):
        row = int(world.held.rows(concept)[0])
        title = str(world.held.pictures.titles[row])
        reference = reference_row(world.held, concept, seed=0)
        item = Item(title, None if reference is None else world.held.image(reference))
        seed = _number(concept)
        own = generator.generate(generator.encode([item]), [[None, *segments]], [seed])[0]
        images = [*own, *several(generator, item, seed, SHARED)[1:]]
        raw = np.stack([attributes(image) for image in images])
        count = len(own)
        made.append(
            Covers(
                title=title,
                topic=int(world.held.topics[row]),
                pictures=world.within(raw, concept),
                embeddings=encoder(raw, [concept] * len(images), images),
                neutral=0,
                segments=tuple(range(1, count)),
                shared=(0, *range(count, len(images))),
            )
        )
    return made


def signature(model: Path, *arrays: Floats) -> str:
    """Of all that decides a pool that a model has drawn."""
    digest = hashlib.sha256()
    for file in sorted(model.rglob("*")):
        if file.suffix in {".safetensors", ".json"}:
            digest.update(file.name.encode() + file.read_bytes())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save(path: Path, signed: str, covers: list[Covers]) -> None:
    """Keep a pool, so that the loop can be run again without drawing."""
    arrays: dict[str, NDArray[np.generic]] = {"signature": np.array(signed)}
    for number, each in enumerate(covers):
        arrays |= {f"{number}.pictures": each.pictures, f"{number}.embeddings": each.embeddings}
        arrays[f"{number}.places"] = np.array([each.topic, each.neutral, len(each.segments), *each.segments])
        arrays |= {f"{number}.shared": np.array(each.shared), f"{number}.title": np.array(each.title)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load(path: Path, signed: str) -> list[Covers]:
    """Raises ValueError for a pool of another model, other segments or other items."""
    with np.load(path) as kept:
        if str(kept["signature"]) != signed:
            raise ValueError(f"{path} holds covers of another model or of other segments: name another file")
        made = []
        for number in range(sum(name.endswith(".title") for name in kept.files)):
            topic, neutral, count, *segments = kept[f"{number}.places"].tolist()
            assert count == len(segments)
            made.append(
                Covers(
                    str(kept[f"{number}.title"]), topic, kept[f"{number}.pictures"], kept[f"{number}.embeddings"],
                    neutral, tuple(segments), tuple(kept[f"{number}.shared"].tolist()),
                )
            )  # fmt: skip
    return made


def _chosen(gallery: Gallery, items: int) -> list[str]:
    concepts = [each for each in gallery.concepts() if len(gallery.rows(each)) >= LEAST_PICTURES]
    if not items or items >= len(concepts):
        return concepts
    return [concepts[k] for k in np.linspace(0, len(concepts) - 1, items).astype(int)]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
