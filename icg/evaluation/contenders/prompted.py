"""Personalising by words: the base, its own text encoder, and a title with attribute words that suit the reader.

The words are those of the base's own captions (`icg.tiny.captions`), so it knows them; which hold for a picture is
measured on pixels. A prompt cannot carry a reference: only the title and the words are told.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from icg.conditioning import Base
from icg.evaluation.contenders.base import Case, Drawn, Reader, clock
from icg.evaluation.emoji import Gallery
from icg.evaluation.people import Floats
from icg.evaluation.relevance import small
from icg.evaluation.utility import Utility
from icg.preference import logistic
from icg.sampling import SamplerConfig, decode, draw_latents
from icg.tiny.captions import WORDS, Word, measure

SAID = 3
"""Words in a prompt, at most: captions carry two or three."""

Paint = Callable[[Sequence[str], Sequence[int], SamplerConfig], list[Image.Image]]
"""Pictures of prompts by a base, one seed each."""


def painter(base: Base) -> Paint:
    """The base told prompts through its own text encoder, in this project's loop, nothing shared."""

    def paint(prompts: Sequence[str], seeds: Sequence[int], sampler: SamplerConfig) -> list[Image.Image]:
        with torch.no_grad():
            told = base.text(list(prompts), sampler.width, sampler.height)
            latents = draw_latents(base, told, told, range(len(prompts)), list(seeds), sampler)
            return [Image.fromarray(picture) for picture in decode(base, latents, sampler).numpy()]

    return paint


@dataclass(frozen=True)
class Vocabulary:
    """Which words hold for a picture: ranks of its measures among training pictures."""

    ranked: dict[str, Floats]  # by measure, its sorted values over training pictures

    @classmethod
    def of(cls, train: Gallery) -> Self:
        values = [measure(picture) for picture in train.pictures.pixels]
        return cls({name: np.sort([one[name] for one in values]) for name in values[0]})

    def holds(self, images: Sequence[Image.Image]) -> NDArray[np.bool_]:
        """[n, words]."""
        rows = []
        for image in images:
            found = measure(np.asarray(small(image)))
            rank = {name: np.searchsorted(values, found[name]) / len(values) for name, values in self.ranked.items()}
            rows.append([word.low <= rank[word.measure] <= word.high for word in WORDS])
        return np.array(rows, bool).reshape(len(images), len(WORDS))


def said(appeal: Floats) -> list[str]:
    """The best words by appeal [words], those that appeal at all, one a measure: "dark" and "pale" contradict."""
    chosen: list[Word] = []
    for place in np.argsort(-appeal):
        word = WORDS[place]
        if appeal[place] > 0 and word.measure not in {other.measure for other in chosen}:
            chosen.append(word)
    return [word.word for word in chosen[:SAID]]


class Prompted(ABC):
    """A prompt for each reader and item, drawn by the base at its own guidance."""

    name: str

    def __init__(self, paint: Paint, vocabulary: Vocabulary, sampler: SamplerConfig) -> None:
        self.paint = paint
        self.vocabulary = vocabulary
        self.sampler = sampler

    @abstractmethod
    def words(self, reader: Reader, topic: int) -> list[str]:
        """Of the reader's prompts for items of a topic."""

    def draw(self, items: Sequence[Case], users: Sequence[Reader], seeds: Sequence[int]) -> Drawn:
        images = []
        calls = 0
        with clock() as seconds:
            for case, seed in zip(items, seeds, strict=True):
                prompts = [
                    ", ".join([*([case.title] if case.title else []), *self.words(u, case.topic)]) for u in users
                ]
                once = list(dict.fromkeys(prompts))
                pictures = dict(zip(once, self.paint(once, [seed] * len(once), self.sampler), strict=True))
                calls += len(once) * self.sampler.steps * (2 if self.sampler.guidance > 1 else 1)
                images.append([pictures[prompt] for prompt in prompts])
            return Drawn(images, calls, seconds())


class InferredPrompt(Prompted):
    """Words inferred from the same choices as the reader's vector, by the same pairwise logistic loss."""

    name = "inferred_prompt"

    def __init__(self, paint: Paint, vocabulary: Vocabulary, sampler: SamplerConfig, precision: float = 1.0) -> None:
        super().__init__(paint, vocabulary, sampler)
        self.precision = precision
        self._words: dict[int, list[str]] = {}

    def words(self, reader: Reader, topic: int) -> list[str]:
        if reader.number not in self._words:
            chosen = self.vocabulary.holds(reader.chosen).astype(float)
            steps = chosen - self.vocabulary.holds(reader.rejected)
            self._words[reader.number] = said(logistic(steps, np.zeros(len(steps)), self.precision))
        return self._words[reader.number]


class PromptOracle(Prompted):
    """Words by true taste, for each topic its own: what prompting could reach at best."""

    name = "prompt_oracle"

    def __init__(
        self, paint: Paint, vocabulary: Vocabulary, sampler: SamplerConfig, utility: Utility, train: Gallery
    ) -> None:
        super().__init__(paint, vocabulary, sampler)
        self.people = utility.people
        holds = vocabulary.holds([train.image(row) for row in range(len(train))])
        pictures = utility.standardise.each(train.raw, train.pictures.concepts)
        # What a picture of which the word holds is like, beyond what pictures of its concept are like: [words, 24].
        self.shift = holds.T.astype(float) @ pictures / np.maximum(holds.sum(axis=0), 1)[:, None]

    def words(self, reader: Reader, topic: int) -> list[str]:
        return said(self.shift @ (self.people.general[reader.number] + self.people.by_topic[reader.number, topic]))
