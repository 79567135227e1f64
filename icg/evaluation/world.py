"""What an evaluation needs beside a model: pictures, simulated people, judges."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from icg.evaluation.emoji import CACHE, Gallery, far_concepts, gallery, keywords_of
from icg.evaluation.panel import Panel
from icg.evaluation.study import Study, StudyConfig, study
from icg.evaluation.utility import Utility
from icg.tiny.files import DATA


@dataclass(frozen=True)
class EvalConfig:
    """Chosen on validation, committed, and then used once on the test split."""

    people: int = 24  # held-out people
    concepts: int = 0  # held-out concepts, evenly spaced; 0: all
    oracle_concepts: int = 24  # of these, the first, for the best of 64
    oracle: int = 64  # covers that the oracle chooses among
    pairs: int = 8  # of seeds that neutral is compared with itself in
    turns: int = 4  # seeds of these that own covers are drawn from, too, to be as relevant; at most 2 * pairs
    practice: int = 12  # validation items on which filters are chosen
    titles: int = 100  # seen and unseen titles that the base is asked for on its rung
    guidance: float = 3.0  # of the base told prompts
    precision: float = 1.0  # of the estimate of a person's vector
    personalization: float | None = None  # of the covers; None: as the adapter was tuned
    seed: int = 0  # of noise and references
    study: StudyConfig = field(default_factory=StudyConfig)

    def __post_init__(self) -> None:
        if self.turns > 2 * self.pairs:
            raise ValueError(
                f"own covers from {self.turns} seeds have neutral ones from {2 * self.pairs} to be compared with: "
                "turns may be at most twice the pairs"
            )


@dataclass(frozen=True)
class World:
    """Attributes:
    study: train pictures and people.
    panel: the judges, and the pictures of the split that is reported on.
    practice: the validation pictures.
    concepts: those of the panel's pictures that covers are drawn of.
    """

    study: Study
    panel: Panel
    practice: Gallery
    concepts: list[str]

    @classmethod
    def load(cls, config: EvalConfig, split: str, why: str = "", data: Path = DATA, judges: Path = CACHE) -> Self:
        """Of the split "val" or "test"; of the latter only what has no near-twin in training.

        Args:
            why: the reason of a look at the test split, for its log.

        Raises:
            FileNotFoundError: no pictures, or no trained judge, in one line.
            ValueError: a look at the test split without a reason.
        """
        if not data.is_file():
            raise FileNotFoundError(
                f"no pictures are at {data}: figures need the parquet file of 64-pixel emoji, `--data FILE` says where"
            )
        train, val = gallery("train", data=data), gallery("val", data=data)
        held = gallery("test", data=data, why=why) if split == "test" else val
        made = study(train, config.study)
        within = made.standardise.joined(val.raw, val.pictures.concepts).joined(held.raw, held.pictures.concepts)
        panel = Panel.load(held, Utility(made.people, within), keywords_of(data), judges)
        concepts = held.concepts()
        if split == "test":
            concepts = far_concepts(held, sorted({*train.pictures.titles.tolist(), *val.pictures.titles.tolist()}))
        if config.concepts:
            concepts = [concepts[k] for k in np.linspace(0, len(concepts) - 1, config.concepts).astype(int)]
        return cls(made, panel, val, concepts)
