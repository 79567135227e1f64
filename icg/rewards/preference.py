"""Preference reward: what a user thinks of a picture. The space's frozen encoder, and `icg.preference.Head` on it."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection

from icg.exceptions import BadWeights
from icg.loading import loading
from icg.preference import Head
from icg.rewards.vision import Preprocessing


class CoverEncoder(nn.Module):
    """The cover side of the preference model, frozen within a space: the part `space`."""

    def __init__(self, encoder: CLIPVisionModelWithProjection, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.encoder = encoder
        self.preprocessing = preprocessing

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        with loading("space", directory):
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                directory, local_files_only=True, use_safetensors=True
            )
            preprocessing = Preprocessing.from_pretrained(directory)
        return cls(encoder, preprocessing).eval().requires_grad_(False)

    @property
    def dimension(self) -> int:
        return int(self.encoder.config.projection_dim)

    def forward(self, images: Tensor) -> Tensor:
        """[n, 3, height, width] in [0, 1] to unit vectors [n, d]."""
        return functional.normalize(self.encoder(pixel_values=self.preprocessing(images)).image_embeds, dim=-1)


class PreferenceModel(nn.Module):
    """The same score as `Head.score`, differentiable from the picture on, for alignment."""

    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: CoverEncoder, head: Head) -> None:
        super().__init__()
        if encoder.dimension != head.dimension:
            raise BadWeights(f"the space has dimension {encoder.dimension}, the preference head {head.dimension}")
        self.encoder = encoder
        self.register_buffer("weight", torch.from_numpy(head.weight.copy()))
        self.register_buffer("bias", torch.from_numpy(head.bias.copy()))

    @classmethod
    def from_pretrained(cls, space: str | Path, preference: str | Path) -> Self:
        return cls(CoverEncoder.from_pretrained(space), Head.load(preference))

    def score(self, users: Tensor, covers: Tensor) -> Tensor:
        """uᵀ W c + bᵀ c for [n, d] and [n, d], [n]."""
        return ((users @ self.weight + self.bias) * covers).sum(-1)

    def forward(self, images: Tensor, users: Tensor) -> Tensor:
        """[n, 3, height, width] in [0, 1] and [n, d] to [n]."""
        return self.score(users, self.encoder(images))
