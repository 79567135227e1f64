"""The judges together: what they say of a contender's covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from icg.evaluation.contenders.base import Case, Drawn, Reader
from icg.evaluation.emoji import CACHE, Gallery
from icg.evaluation.figures import copied
from icg.evaluation.people import Floats
from icg.evaluation.relevance import RelevanceJudge, Titles, blurred, small
from icg.evaluation.second import SecondJudge
from icg.evaluation.utility import Utility
from icg.tiny.data import FAMILY


@dataclass(frozen=True)
class Measured:
    """What the judges say of one contender's covers; tables are [people, items]."""

    utility: Floats  # true U
    second: Floats | None  # the second judge's, if it is trained
    hit: NDArray[np.bool_]  # title among the top 5, by pictures
    hit_first: NDArray[np.bool_]  # title the first
    hit_pixels: NDArray[np.bool_]  # title among the top 5 by 8 × 8 pixels: how much of a hit is colour and silhouette
    hit_words: NDArray[np.bool_]  # and by words
    group: NDArray[np.bool_]  # group guessed right
    copies: NDArray[np.bool_] | None  # nearest real picture is the own reference; None without references
    features: Floats  # [people, items, features], for FID, KID and diversity
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Panel:
    """Judges, and the real pictures of the concepts in question."""

    gallery: Gallery  # of the test (or validation) split, all concepts
    utility: Utility
    relevance: RelevanceJudge
    titles: Titles  # of the gallery's concepts
    pixels: Titles  # the same by 8 × 8 pixels
    second: SecondJudge | None

    @classmethod
    def load(cls, gallery: Gallery, utility: Utility, keywords: dict[str, list[str]], folder: Path = CACHE) -> Self:
        """With the judges trained under `folder`; the second may be missing.

        Raises:
            FileNotFoundError: the relevance judge was not trained yet.
        """
        relevance = RelevanceJudge.load(folder / "relevance")
        trained = (folder / "second" / "weights.safetensors").exists()
        second = SecondJudge.load(folder / "second") if trained else None
        titles = Titles.of(relevance, gallery, keywords)
        return cls(gallery, utility, relevance, titles, Titles.by_pixels(gallery), second)

    def judge(
        self, drawn: Drawn, items: Sequence[Case], users: Sequence[Reader], references: dict[tuple[int, int], int]
    ) -> Measured:
        """Args:
        references: by (item, reader's place) the gallery's row of the reference, as `cases` made them.
        """
        numbers = [reader.number for reader in users]
        # A cover that several readers share is one picture, looked at once.
        once: dict[int, Image.Image] = {id(image): image for row in drawn.images for image in row}
        place = {key: k for k, key in enumerate(once)}
        pixels = np.stack([np.asarray(small(image)) for image in once.values()])
        seen = self.relevance.look(pixels)
        shape = (len(users), len(items))
        utility, group = np.zeros(shape), np.zeros(shape, bool)
        second = np.zeros(shape) if self.second is not None else None
        which = np.zeros(shape, np.int64)
        for i, (case, row) in enumerate(zip(items, drawn.images, strict=True)):
            mine = np.array([place[id(image)] for image in row])
            which[:, i] = mine
            utility[:, i] = self.utility.each(case.concept, case.topic, numbers, row)
            group[:, i] = seen.groups[mine] == case.topic
            if self.second is not None and second is not None:
                scores = self.second.utilities(pixels[mine], np.full(len(mine), case.topic))
                second[:, i] = scores[numbers, np.arange(len(mine))]
        concepts = [case.concept for case in items]
        hit, first = self._hits(self.titles, seen.embeddings[which], concepts, references)
        coarse, _ = self._hits(self.pixels, blurred(pixels)[which], concepts, references)
        spoken = self.titles.spoken(seen.words)
        words = np.stack([self.titles.hits(spoken[row], concepts) for row in which])
        copies = None
        if references:
            flat = [(i, k) for k in range(len(users)) for i in range(len(items))]
            own = np.array([references[key] for key in flat])
            copies = copied(pixels[which.ravel()], self.gallery.pictures.pixels, own).reshape(shape)
        return Measured(
            utility,
            second,
            hit,
            first,
            coarse,
            words,
            group,
            copies,
            seen.features[which],
            drawn.evaluations,
            drawn.seconds,
        )

    def _hits(
        self, titles: Titles, embeddings: Floats, concepts: Sequence[str], references: dict[tuple[int, int], int]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Title among the top 5 and the first, [people, items] each, the reference's artist left out."""
        five, first = np.zeros(embeddings.shape[:2], bool), np.zeros(embeddings.shape[:2], bool)
        families = {place: FAMILY[str(self.gallery.pictures.styles[row])] for place, row in references.items()}
        for k, mine in enumerate(embeddings):
            out = [families.get((i, k)) for i in range(len(concepts))]
            for family in set(out):
                some = [i for i, one in enumerate(out) if one == family]
                near, own = titles.near(mine[some], left_out=family), [concepts[i] for i in some]
                five[k, some], first[k, some] = titles.hits(near, own), titles.hits(near, own, 1)
        return five, first
