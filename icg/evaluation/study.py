"""Who takes part: simulated people, cut into those whose choices may train and those who are held out.

`python -m icg.evaluation.study FILE` writes the training people's choices, and nothing else of them, as rows of the
train split: what liked-SFT, the preference model and the adapter may learn from.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icg.evaluation.choices import FEWEST, MOST, Choices, choose
from icg.evaluation.emoji import TOPICS, Gallery, gallery
from icg.evaluation.people import Floats, Population, WithinConcept
from icg.tiny.data import FAMILY
from icg.tiny.files import DATA, write_whole


@dataclass(frozen=True)
class StudyConfig:
    """Fixed before anything was trained."""

    training: int = 600  # people whose choices may train
    held_out: int = 64  # people who are only ever judged for
    archetypes: int = 12  # kinds of people, see Population.drawn
    training_choices: int = 200  # of each training person
    fewest: int = FEWEST  # choices of a held-out person, at least
    most: int = MOST  # and at most, log-uniformly between
    seed: int = 20261121


@dataclass(frozen=True)
class Study:
    """People and what they chose among the train split's pictures.

    Attributes:
        train: pictures of the train split, validation left out.
        standardise: fitted on `train`.
        people: all, training people first.
        training: numbers of the training people.
        held_out: numbers of the held-out people.
        choices: of the training people.
        histories: of the held-out people, `fewest` to `most` each.
    """

    config: StudyConfig
    train: Gallery
    standardise: WithinConcept
    people: Population
    training: NDArray[np.int64]
    held_out: NDArray[np.int64]
    choices: Choices
    histories: Choices

    def top_families(self, standardised: Floats, person: int) -> frozenset[str]:
        """Artist families of the two styles that this person likes best among the train pictures, by true taste.

        A reference must not come from these, or handing it back would please.
        """
        utility = self.people.part([person]).utilities(standardised, self.train.topics)[0]
        styles, index = np.unique(self.train.pictures.styles, return_inverse=True)
        mean = np.bincount(index, utility) / np.bincount(index)
        return frozenset(FAMILY[str(styles[best])] for best in np.argsort(-mean)[:2])


def study(train: Gallery, config: StudyConfig | None = None) -> Study:
    """Draw the people and let them choose."""
    config = config or StudyConfig()
    standardise = WithinConcept.fit(train.raw, train.pictures.concepts)
    pictures = standardise.each(train.raw, train.pictures.concepts)
    people = Population.drawn(
        config.training + config.held_out, len(TOPICS), config.seed, archetypes=config.archetypes
    ).calibrated(pictures, train.topics, train.pictures.concepts)
    training = np.arange(config.training)
    held_out = np.arange(config.training, config.training + config.held_out)
    rng = np.random.default_rng(config.seed + 1)
    few = np.exp(rng.uniform(np.log(config.fewest), np.log(config.most + 1), size=config.held_out)).astype(np.int64)
    choices = choose(
        people.part(training), train, pictures, np.full(config.training, config.training_choices), config.seed + 2
    )
    histories = choose(people.part(held_out), train, pictures, np.minimum(few, config.most), config.seed + 3)
    histories = Choices(held_out[histories.people], histories.chosen, histories.rejected)
    return Study(config, train, standardise, people, training, held_out, choices, histories)


def main() -> None:
    """Write the training people's choices: user (number), chosen and rejected (rows of the train split's pictures)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path, help="a .npz file")
    parser.add_argument("--data", type=Path, default=DATA, help="the emoji parquet file")
    given = parser.parse_args()
    made = study(gallery("train", data=given.data))
    choices = made.choices
    write_whole(
        given.file,
        lambda partial: np.savez(partial, user=choices.people, chosen=choices.chosen, rejected=choices.rejected),
    )
    print(f"{len(made.choices)} choices of {len(made.training)} simulated people in {given.file}")


if __name__ == "__main__":
    main()
