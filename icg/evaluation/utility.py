"""The true utility of pictures for simulated people: what judges ask, and ceilings are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from icg.evaluation.attributes import attributes
from icg.evaluation.people import Floats, Population, WithinConcept


@dataclass(frozen=True)
class Utility:
    """U of whatever picture, drawn or real."""

    people: Population
    standardise: WithinConcept  # of every concept that will be asked about

    def of(self, concept: str, topic: int, people: Sequence[int], images: Sequence[Image.Image]) -> Floats:
        """[people, images], all of one concept. A picture that occurs several times is measured once."""
        once = {id(image): image for image in images}
        measured = {key: self.standardise(attributes(image), concept) for key, image in once.items()}
        pictures = np.stack([measured[id(image)] for image in images])
        taste = self.people.general[list(people)] + self.people.by_topic[list(people), topic]
        return np.asarray(taste @ pictures.T)

    def each(self, concept: str, topic: int, people: Sequence[int], images: Sequence[Image.Image]) -> Floats:
        """[people]: of each person's own picture."""
        return np.asarray(np.diagonal(self.of(concept, topic, people, images)))
