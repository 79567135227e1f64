"""The generator given a vector: a person's own, their segment's, somebody else's, nobody's. ICG and its controls.

The same class draws a liked-SFT adapter's covers: it is another generator under another name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from icg.evaluation.contenders.base import Case, Drawn, Generator, Reader, Vector, clock, evaluations
from icg.slots import chunks

TOGETHER = 16
"""Items handed to the generator at once."""


class Conditioned:
    """Covers for the vector that `choose` finds for a reader; None is neutral.

    Readers with the same vector share one cover, so neutral costs one drawing an item.
    """

    def __init__(self, name: str, generator: Generator, choose: Callable[[Reader], Vector | None]) -> None:
        self.name = name
        self.generator = generator
        self.choose = choose

    def draw(self, items: Sequence[Case], users: Sequence[Reader], seeds: Sequence[int]) -> Drawn:
        with clock() as seconds:
            jobs = [
                (row, item, positions, seed, *self._distinct([users[position] for position in positions]))
                for row, (case, seed) in enumerate(zip(items, seeds, strict=True))
                for item, positions in case.groups(users)
            ]
            images: list[list[Image.Image | None]] = [[None] * len(users) for _ in items]
            calls = 0
            # Together, so that the generator's slots are full: alone, one neutral cover costs as much as eight.
            for some in chunks(len(jobs), TOGETHER):
                part = jobs[some.start : some.stop]
                context = self.generator.encode([item for _, item, _, _, _, _ in part])
                vectors = [vectors for _, _, _, _, _, vectors in part]
                drawn = self.generator.generate(context, vectors, [seed for _, _, _, seed, _, _ in part])
                for (row, _, positions, _, keys, asked), covers in zip(part, drawn, strict=True):
                    calls += evaluations(self.generator.sampler, len(asked))
                    for position, key in zip(positions, keys, strict=True):
                        images[row][position] = covers[key]
            return Drawn([[image for image in row if image is not None] for row in images], calls, seconds())

    def _distinct(self, users: Sequence[Reader]) -> tuple[list[int], list[Vector | None]]:
        """For each user the row of their vector among the distinct ones, and those."""
        rows: dict[bytes | None, int] = {}
        vectors: list[Vector | None] = []
        keys = []
        for reader in users:
            vector = self.choose(reader)
            key = None if vector is None else vector.tobytes()
            if key not in rows:
                rows[key] = len(vectors)
                vectors.append(vector)
            keys.append(rows[key])
        return keys, vectors


def user(generator: Generator, name: str = "icg") -> Conditioned:
    """ICG at the level of a person."""
    return Conditioned(name, generator, lambda reader: reader.vector)


def segment(generator: Generator, name: str = "icg_segment") -> Conditioned:
    """ICG at the level of a segment: what the worker does."""
    return Conditioned(name, generator, lambda reader: reader.segment)


def neutral(generator: Generator, name: str = "neutral") -> Conditioned:
    """The cover for nobody in particular."""
    return Conditioned(name, generator, lambda reader: None)


def mismatched(generator: Generator, name: str = "mismatched") -> Conditioned:
    """A cover made for somebody of another segment."""
    return Conditioned(name, generator, lambda reader: reader.other)


def random_embedding(generator: Generator, name: str = "random_embedding") -> Conditioned:
    """A vector of the reader's own length in a random direction: what being different alone gives."""

    def choose(reader: Reader) -> Vector:
        direction = np.random.default_rng([reader.number, 0x1C6]).normal(size=reader.vector.shape)
        length = np.linalg.norm(reader.vector) / np.linalg.norm(direction)
        return np.asarray(direction * length, np.float32)

    return Conditioned(name, generator, choose)
