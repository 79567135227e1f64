"""Relevance reward: the cosine of picture and title (CLIP score, arXiv 2104.08718, without its factor of 2.5).

A human-preference model that is a CLIP underneath (PickScore is a `CLIPModel`) loads the same way; its score is the
cosine times a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, CLIPModel, VisionTextDualEncoderModel

from icg.exceptions import Unsupported
from icg.loading import loading
from icg.rewards.vision import Preprocessing


class Relevance(nn.Module):
    """How well a picture shows what a title says, in [-1, 1]. Takes `CLIPModel` and `VisionTextDualEncoderModel`."""

    def __init__(self, model: nn.Module, tokenizer: Any, preprocessing: Preprocessing) -> None:
        super().__init__()
        if not isinstance(model, (CLIPModel, VisionTextDualEncoderModel)):
            raise Unsupported(f"{type(model).__name__} is no relevance reward; CLIPModel and its like are")
        self.model: Any = model
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        with loading("relevance reward", directory):
            model = AutoModel.from_pretrained(directory, local_files_only=True, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            preprocessing = Preprocessing.from_pretrained(directory)
        return cls(model, tokenizer, preprocessing).eval().requires_grad_(False)

    def titles(self, titles: Sequence[str]) -> Tensor:
        """Unit vectors [n, d], always padded to the tokenizer's full length."""
        tokens = self.tokenizer(list(titles), padding="max_length", truncation=True, return_tensors="pt")
        return functional.normalize(_features(self.model.get_text_features(**tokens.to(self.model.device))), dim=-1)

    def images(self, images: Tensor) -> Tensor:
        """[n, 3, height, width] in [0, 1] to unit vectors [n, d]."""
        features = self.model.get_image_features(pixel_values=self.preprocessing(images))
        return functional.normalize(_features(features), dim=-1)

    def forward(self, images: Tensor, titles: Sequence[str]) -> Tensor:
        """One score a picture and its title, [n]."""
        return (self.images(images) * self.titles(titles)).sum(-1)


def _features(output: Any) -> Tensor:
    # transformers 5 answers with a model output whose pooled entry is the projected one.
    features: Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return features
