"""The true utility of pictures for simulated people: what judges ask, and ceilings are told."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from icg.evaluation.attributes import attributes
from icg.evaluation.people import Floats, Population, WithinConcept


@dataclass(frozen=True)
class Utility:
    """U of whatever picture, drawn or real."""

    people: Population
    standardise: WithinConcept  # of every concept that will be asked about
    # Raw attributes by pixels: a measurement takes 3 ms, and shared covers come up for every reader and contender.
    _measured: dict[bytes, Floats] = field(default_factory=dict, repr=False, compare=False)

    def of(self, concept: str, topic: int, people: Sequence[int], images: Sequence[Image.Image]) -> Floats:
        """[people, images], all of one concept."""
        pictures = self.attributes(concept, images)
        taste = self.people.general[list(people)] + self.people.by_topic[list(people), topic]
        return np.asarray(taste @ pictures.T)

    def attributes(self, concept: str, images: Sequence[Image.Image]) -> Floats:
        """[images, 24], standardised within the concept: all that tastes see of a picture."""
        return self.standardise(np.stack([self._raw(image) for image in images]), concept)

    def _raw(self, image: Image.Image) -> Floats:
        key = hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest()
        if key not in self._measured:
            self._measured[key] = attributes(image)
        return self._measured[key]

    def each(self, concept: str, topic: int, people: Sequence[int], images: Sequence[Image.Image]) -> Floats:
        """[people]: of each person's own picture."""
        return np.asarray(np.diagonal(self.of(concept, topic, people, images)))
