"""A second judge of taste: learned from choices, another architecture than attributes, one half of the train concepts.

It says whether a gain in U is a gain in what people like or a hole in 24 formulas. A small vision transformer reads the
picture; people, all of them, have factors of their own:

    s(user, image, item) = (p_user + q_user[topic of item]) · z(image)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from icg.evaluation.kept import judge_config, load_weights, save_judge
from icg.evaluation.people import Floats
from icg.evaluation.relevance import small
from icg.tiny.pixels import to_tensor


@dataclass(frozen=True)
class SecondConfig:
    people: int = 664  # all of the study
    topics: int = 9
    factors: int = 32  # numbers of z
    width: int = 96  # of a token
    depth: int = 4  # transformer layers
    patch: int = 8  # pixels a side


class SecondModel(nn.Module):
    """Pictures [n, 3, 64, 64] in [-1, 1] to factors z [n, factors]; and the people's own factors."""

    def __init__(self, config: SecondConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, (64 // config.patch) ** 2, config.width))
        layer = nn.TransformerEncoderLayer(
            config.width, 4, 3 * config.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.factors)
        self.general = nn.Parameter(0.1 * torch.randn(config.people, config.factors))
        self.by_topic = nn.Parameter(0.1 * torch.randn(config.topics, config.people, config.factors))

    def forward(self, pictures: Tensor) -> Tensor:
        tokens = self.patches(pictures).flatten(2).transpose(1, 2) + self.places
        return torch.as_tensor(self.out(self.norm(self.layers(tokens)).mean(dim=1)))

    def scores(self, factors: Tensor, topics: Tensor) -> Tensor:
        """Of every picture [n, factors] with its topic [n] for everybody: [n, people]."""
        return torch.einsum("nf,npf->np", factors, self.general + self.by_topic[topics])


def in_second_half(concept: str) -> bool:
    """Whether the second judge learns from this train concept; by hash, so that it depends on no other row."""
    return hashlib.sha256(f"second judge\n{concept}".encode()).digest()[0] % 2 == 1


class SecondJudge:
    """The trained model, asked."""

    def __init__(self, model: SecondModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def save(self, folder: Path) -> None:
        save_judge(folder, self.model.config, self.model)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises:
        FileNotFoundError: nothing was trained there yet.
        """
        model = SecondModel(SecondConfig(**judge_config(folder)))
        load_weights(folder, model)
        return cls(model)

    @torch.no_grad()
    def utilities(self, pixels: NDArray[np.uint8], topics: NDArray[np.int64], batch: int = 128) -> Floats:
        """Everybody's score of pictures uint8 [n, 64, 64, 3] with topics [n]: [people, n].

        Only differences between pictures of one concept mean anything.
        """
        parts = [
            self.model.scores(
                self.model(to_tensor(pixels[start : start + batch])), torch.from_numpy(topics[start : start + batch])
            )
            for start in range(0, len(pixels), batch)
        ]
        return np.asarray(torch.cat(parts).T.double().numpy())

    def utilities_of(self, images: Sequence[Image.Image], topics: NDArray[np.int64]) -> Floats:
        """The same for images of any size."""
        return self.utilities(np.stack([np.asarray(small(image)) for image in images]), topics)
