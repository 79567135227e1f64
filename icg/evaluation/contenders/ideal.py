"""What can be known of a person from their few choices, were covers seen perfectly.

The stack's preference model sees a cover through an encoder that it had to learn. Here a cover is seen as the
attributes that simulated tastes are made of, and a person's vector is estimated from the same choices by the same
model. What is still missing then is missing in the choices, and no encoder can find it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from icg.alignment.catalogue import Choices
from icg.evaluation.contenders.base import Case, Reader, Vector, Worth
from icg.evaluation.people import Floats
from icg.evaluation.study import Study
from icg.evaluation.utility import Utility
from icg.preference import Head, estimate
from icg.tiny.preference import fit_prior

ROUNDS = 8
"""Of expectation-maximisation for the training people's distribution: what it foresees no longer changes."""


def ideal(study: Study, utility: Utility) -> Worth:
    """Worth of pictures to held-out people by attributes and their own histories; no taste is told."""
    train = study.train
    seen = study.standardise.each(train.raw, train.pictures.concepts).astype(np.float32)
    width = seen.shape[1]
    theirs = Choices(study.choices.people, study.choices.chosen, study.choices.rejected)
    head = fit_prior(Head("", np.eye(width), np.zeros(width)), theirs, seen, ROUNDS)
    known: dict[int, Vector] = {}

    def vector(person: int) -> Vector:
        if person not in known:
            history = study.histories.of(person)
            known[person] = estimate(head, seen[history.chosen], seen[history.rejected])
        return known[person]

    def worth(case: Case, users: Sequence[Reader], images: Sequence[Image.Image]) -> Floats:
        pictures = utility.attributes(case.concept, images)
        vectors = np.stack([vector(reader.number) for reader in users])
        return np.asarray(head.score(vectors[:, None], pictures[None]), np.float64)

    return worth
