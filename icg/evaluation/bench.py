"""A model, its rivals and the people it draws for: every contender of a setting by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from icg.evaluation import compare
from icg.evaluation.cases import Given, cases, readers, seeds
from icg.evaluation.contenders import (
    BestOfShared,
    Case,
    Contender,
    FilteredNeutral,
    InferredPrompt,
    Oracle,
    Planted,
    PromptOracle,
    Reader,
    ReferenceImage,
    ideal,
    mismatched,
    neutral,
    random_embedding,
    segment,
    user,
)
from icg.evaluation.contenders.base import Worth
from icg.evaluation.contenders.best_of import Prefer
from icg.evaluation.contenders.prompted import Vocabulary, painter
from icg.evaluation.people import Floats
from icg.evaluation.world import EvalConfig, World
from icg.exceptions import BadWeights
from icg.generator import CoverGenerator
from icg.rewards import Judge
from icg.sampling import SamplerConfig
from icg.tuned import tuned


@dataclass
class Bench:
    """Attributes:
    prefer: the stack's own preference model.
    avoid: for each of the people, artist families that no reference of theirs comes from.
    rivals: the same base and MLLM with another adapter, by name.
    """

    config: EvalConfig
    world: World
    generator: CoverGenerator
    prefer: Prefer
    people: list[Reader]
    avoid: list[frozenset[str]]
    rivals: dict[str, CoverGenerator]

    @classmethod
    def load(cls, config: EvalConfig, world: World, model: Path, rivals: dict[str, Path]) -> Self:
        """Args:
            rivals: folders of further adapters, such as {"liked_sft": folder}.

        Raises:
            BadWeights: a part of the model is missing or not to be used.
        """
        for part in ("rewards", "space", "preference"):
            if not (model / part).is_dir():
                raise BadWeights(f"there is no {part} at {model / part}")
        sampler = tuned(model / "adapter", personalization=config.personalization)
        generator = CoverGenerator.from_pretrained(model, sampler=sampler)
        judge = Judge.from_parts(model / "rewards", model / "space", model / "preference")
        made, train = world.study, world.study.train
        embeddings = judge.embed([train.image(row) for row in range(len(train))])
        people = readers(made, embeddings, judge.head, count=config.people, precision=config.precision)
        standardised = made.standardise.each(train.raw, train.pictures.concepts)
        avoid = [made.top_families(standardised, reader.number) for reader in people]
        others = {name: _with_adapter(generator, folder) for name, folder in rivals.items()}

        def prefer(users: Sequence[Reader], images: Sequence[Image.Image]) -> Floats:
            return np.asarray(judge.prefer(np.stack([reader.vector for reader in users]), judge.embed(images)), float)

        return cls(config, world, generator, prefer, people, avoid, others)

    def items(self, given: Given) -> tuple[list[Case], dict[tuple[int, int], int]]:
        """The setting's items, and by (item, reader's place) the gallery's row of the reference."""
        numbers = [reader.number for reader in self.people]
        return cases(self.world.panel.gallery, self.world.concepts, given, numbers, self.avoid, self.config.seed)

    def contenders(self, given: Given) -> dict[str, Callable[[], Contender]]:
        """Everybody where title and reference are given; of the other settings those that they are about.

        Made only when called: some have to look at all train pictures first.
        """
        own, panel = self.generator, self.world.panel
        made: dict[str, Callable[[], Contender]] = {
            "neutral": lambda: neutral(own),
            compare.AGAIN: lambda: neutral(own, compare.AGAIN),
            "icg": lambda: user(own),
            "mismatched": lambda: mismatched(own),
        }
        if given != "title":
            made["reference"] = ReferenceImage
        if given != "both":
            return made
        return (
            made
            | {
                "icg_segment": lambda: segment(own),
                "random_embedding": lambda: random_embedding(own),
                compare.OWN_AGAIN: lambda: user(own, compare.OWN_AGAIN),
            }
            | ({compare.FULL: lambda: user(self.sampled(branch=0.0), compare.FULL)} if own.sampler.branch else {})
            | {name: self._rival(name) for name in self.rivals}
            | {
                "planted": lambda: Planted(panel.gallery, self._utility),
                "planted_by_reward": lambda: Planted(panel.gallery, self._reward, "planted_by_reward"),
                "planted_by_attributes": lambda: Planted(
                    panel.gallery, ideal(self.world.study, panel.utility), "planted_by_attributes"
                ),
                "best_of_8": lambda: BestOfShared(own, self.prefer),
                "best_of_8_at_icg_cost": lambda: BestOfShared(own, self.prefer, None),
                "filtered_neutral": lambda: self._filtered("filtered_neutral", self._utility),
                "filtered_by_reward": lambda: self._filtered("filtered_by_reward", self._reward),
                "inferred_prompt": lambda: InferredPrompt(painter(own.base), self._vocabulary(), self.guided),
                "prompt_oracle": lambda: PromptOracle(
                    painter(own.base), self._vocabulary(), self.guided, panel.utility, self.world.study.train
                ),
                "oracle": lambda: Oracle(own, panel.utility, self.config.oracle),
            }
        )

    @property
    def guided(self) -> SamplerConfig:
        """How the base is told prompts: guided, nothing shared."""
        return dataclasses.replace(self.generator.sampler, branch=0.0, guidance=self.config.guidance, guided=1.0)

    def sampled(self, **changes: float) -> CoverGenerator:
        """The same model drawn with another sampler; nothing is loaded again."""
        sampler = dataclasses.replace(self.generator.sampler, **changes)  # type: ignore[arg-type]
        return CoverGenerator(self.generator.base, self.generator.mllm, self.generator.adapter, sampler)

    def _rival(self, name: str) -> Callable[[], Contender]:
        return lambda: user(self.rivals[name], name)

    def _filtered(self, name: str, worth: Worth) -> Contender:
        concepts = self.world.practice.concepts()[: self.config.practice]
        numbers = [reader.number for reader in self.people]
        items, _ = cases(self.world.practice, concepts, "title", numbers, self.avoid)
        return FilteredNeutral(neutral(self.generator), worth, items, seeds(items, self.config.seed), name)

    def _utility(self, case: Case, people: Sequence[Reader], images: Sequence[Image.Image]) -> Floats:
        numbers = [reader.number for reader in people]
        return self.world.panel.utility.of(case.concept, case.topic, numbers, images)

    def _reward(self, case: Case, people: Sequence[Reader], images: Sequence[Image.Image]) -> Floats:
        return self.prefer(people, images)

    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.world.study.train)


def _with_adapter(generator: CoverGenerator, folder: Path) -> CoverGenerator:
    other = CoverGenerator(generator.base, generator.mllm, generator.adapter, generator.sampler)
    other.load_adapter(folder)
    return other
