"""Is this a picture of what the title says? A judge without the stack's text encoder, that trains nothing.

A small convolutional network (the stack sees through vision transformers) learned on the train concepts to tell
concepts apart whatever the style. For a concept it never saw, two sides of text are asked, and neither is MiniLM:

* **pictures**: real pictures of the test concepts stand for their titles. A cover hits if its own concept is among the
  five nearest, the artist family that the cover's reference came from left out.
* **words**: the network also guesses the words of title and keywords; a cover hits if its own title is among the five
  that these words speak for. Weaker, and reported beside the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from icg.evaluation.emoji import TOPICS, Gallery
from icg.evaluation.kept import judge_config, load_weights, save_judge
from icg.evaluation.people import Floats
from icg.tiny.data import FAMILY
from icg.tiny.pixels import to_tensor

TOP = 5
SIDE = 64


@dataclass(frozen=True)
class RelevanceConfig:
    widths: tuple[int, ...] = (24, 48, 96, 160)  # channels at sides 32, 16, 8 and 4
    blocks: tuple[int, ...] = (0, 1, 2, 1)  # blocks at each of them
    embedding: int = 128  # numbers of a picture's embedding
    concepts: int = 0  # told apart in training
    words: tuple[str, ...] = ()  # guessed, of titles and keywords


class Block(nn.Module):
    """Two convolutions round a shortcut. Group norms: nothing is remembered beside the parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.as_tensor(self.inner(x))


class RelevanceModel(nn.Module):
    """Pictures [n, 3, 64, 64] in [-1, 1] to features; heads for concept, words and group."""

    def __init__(self, config: RelevanceConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        before = 3
        for width, blocks in zip(config.widths, config.blocks, strict=True):
            layers += [nn.Conv2d(before, width, 4 if before != 3 else 6, stride=2, padding=1 if before != 3 else 2)]
            layers += [Block(width) for _ in range(blocks)]
            before = width
        self.eye = nn.Sequential(*layers, nn.GroupNorm(8, before), nn.SiLU())
        self.embedding = nn.Linear(2 * before, config.embedding)
        self.concepts = nn.Parameter(torch.randn(config.concepts, config.embedding))
        self.words = nn.Linear(2 * before, len(config.words))
        self.groups = nn.Linear(2 * before, len(TOPICS))

    def features(self, pictures: Tensor) -> Tensor:
        """[n, 2 · last width]: mean and maximum over places."""
        seen = self.eye(pictures)
        return torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1)

    def embed(self, features: Tensor) -> Tensor:
        return functional.normalize(self.embedding(features), dim=-1)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """To the train concepts, [n, concepts]."""
        return embeddings @ functional.normalize(self.concepts, dim=-1).T


def words_of(title: str, keywords: Sequence[str] = ()) -> set[str]:
    """Words of two letters or more of a title and its keywords, plurals cut."""
    found = re.findall(r"[a-z]{2,}", " ".join([title, *keywords]).lower())
    return {word[:-1] if word.endswith("s") and len(word) > 3 else word for word in found}


@dataclass(frozen=True)
class Seen:
    """What the judge saw in some pictures."""

    embeddings: Floats  # [n, embedding], of length 1
    features: Floats  # [n, features], for FID and KID
    words: Floats  # [n, words], log-odds
    groups: NDArray[np.int64]  # [n], rows of TOPICS


class RelevanceJudge:
    """The trained network, asked."""

    def __init__(self, model: RelevanceModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def save(self, folder: Path) -> None:
        save_judge(folder, self.model.config, self.model)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises:
        FileNotFoundError: nothing was trained there yet.
        """
        given = judge_config(folder)
        config = RelevanceConfig(
            tuple(given["widths"]), tuple(given["blocks"]), given["embedding"], given["concepts"], tuple(given["words"])
        )
        model = RelevanceModel(config)
        load_weights(folder, model)
        return cls(model)

    @torch.no_grad()
    def look(self, pixels: NDArray[np.uint8], batch: int = 128) -> Seen:
        """Pictures uint8 [n, 64, 64, 3]."""
        parts = []
        for start in range(0, len(pixels), batch):
            features = self.model.features(to_tensor(pixels[start : start + batch]))
            parts.append(
                (self.model.embed(features), features, self.model.words(features), self.model.groups(features))
            )
        embeddings, features, words, groups = (torch.cat(column) for column in zip(*parts, strict=True))
        return Seen(
            embeddings.double().numpy(), features.double().numpy(), words.double().numpy(), groups.argmax(dim=1).numpy()
        )

    def look_at(self, images: Sequence[Image.Image]) -> Seen:
        """Images of any size."""
        return self.look(np.stack([np.asarray(small(image)) for image in images]))


def small(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)


@dataclass(frozen=True)
class Titles:
    """The titles that a picture may be of, as the judge knows them.

    Attributes:
        concepts: [m], in a fixed order.
        by_family: embedding of each concept [m, embedding] by one artist family, NaN where it drew none.
        words: [m, words], which words speak for each title.
    """

    concepts: tuple[str, ...]
    by_family: Mapping[str, Floats]
    words: NDArray[np.bool_]

    @classmethod
    def of(cls, judge: RelevanceJudge, gallery: Gallery, keywords: Mapping[str, Sequence[str]]) -> Titles:
        """From real pictures of the concepts in question."""
        concepts = tuple(gallery.concepts())
        titles = dict(zip(gallery.pictures.concepts.tolist(), gallery.pictures.titles.tolist(), strict=True))
        spoken = [words_of(titles[concept], keywords.get(concept, ())) for concept in concepts]
        vocabulary = judge.model.config.words
        words = np.array([[word in said for word in vocabulary] for said in spoken])
        return cls(concepts, by_family(gallery, judge.look(gallery.pictures.pixels).embeddings), words)

    @classmethod
    def by_pixels(cls, gallery: Gallery) -> Titles:
        """The floor: titles by `blurred` pictures alone, no network and no words."""
        concepts = tuple(gallery.concepts())
        return cls(concepts, by_family(gallery, blurred(gallery.pictures.pixels)), np.zeros((len(concepts), 0), bool))

    def near(self, embeddings: Floats, left_out: str | None = None) -> Floats:
        """Cosine of pictures [n, embedding] to what stands for each concept, [n, m]; −inf where nothing does.

        Args:
            left_out: an artist family that must not stand for anything.
        """
        with np.errstate(invalid="ignore"):
            families = [mean for family, mean in sorted(self.by_family.items()) if family != left_out]
            stands = np.nansum(np.stack(families), axis=0)
        length = np.linalg.norm(stands, axis=1)
        stands = stands / np.maximum(length, 1e-12)[:, None]
        return np.where(length > 0, embeddings @ stands.T, -np.inf)

    def spoken(self, words: Floats) -> Floats:
        """How much the guessed words [n, words] speak for each title, [n, m]."""
        # Mean log-odds of a title's words, each less its own for the average picture: rare words are always unlikely.
        centred = words - words.mean(axis=0)
        counts = self.words.sum(axis=1)
        return np.where(counts > 0, centred @ self.words.T / np.maximum(counts, 1), -np.inf)

    def hits(self, scores: Floats, concepts: Sequence[str], top: int = TOP) -> NDArray[np.bool_]:
        """Whether each picture's own concept is in the `top` by scores [n, m]; one that nothing stands for never is."""
        own = np.array([self.concepts.index(concept) for concept in concepts])
        score = scores[np.arange(len(own)), own]
        return np.asarray(np.isfinite(score) & ((scores > score[:, None]).sum(axis=1) < top))

    @property
    def chance(self) -> float:
        return TOP / len(self.concepts)


def by_family(gallery: Gallery, embeddings: Floats) -> dict[str, Floats]:
    """Mean embedding of each concept by one artist family, [concepts, embedding]; NaN where it drew none."""
    concepts = gallery.concepts()
    family = np.array([FAMILY[str(style)] for style in gallery.pictures.styles])
    found = {name: np.full((len(concepts), embeddings.shape[1]), np.nan) for name in set(FAMILY.values())}
    for row, concept in enumerate(concepts):
        rows = gallery.rows(concept)
        for name in set(family[rows].tolist()):
            found[name][row] = embeddings[rows[family[rows] == name]].mean(axis=0)
    return found


def blurred(pixels: NDArray[np.uint8]) -> Floats:
    """Pictures uint8 [n, 64, 64, 3] as 8 × 8 pixels less white, of length 1: [n, 192]. Colours, and where they are."""
    ink = 255.0 - pixels.reshape(len(pixels), 8, SIDE // 8, 8, SIDE // 8, 3).mean(axis=(2, 4))
    flat = ink.reshape(len(pixels), -1)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9))


def real_hits(titles: Titles, gallery: Gallery, embeddings: Floats) -> tuple[float, float]:
    """Share of a gallery's pictures whose title is among the top 5, and the first, the own artists left out.

    A picture of a concept that nobody else drew is not counted.
    """
    concepts = gallery.pictures.concepts.tolist()
    family = np.array([FAMILY[str(style)] for style in gallery.pictures.styles])
    five, first, known = (np.zeros(len(gallery), bool) for _ in range(3))
    for name in np.unique(family):
        mine = np.flatnonzero(family == name)
        near = titles.near(embeddings[mine], left_out=str(name))
        own = [concepts[row] for row in mine]
        five[mine], first[mine] = titles.hits(near, own), titles.hits(near, own, 1)
        known[mine] = np.isfinite(near[0, [titles.concepts.index(concept) for concept in own]])
    return float(five[known].mean()), float(first[known].mean())
