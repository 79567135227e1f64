"""Aesthetic reward: a small head on normalised CLIP image features, in the layout of the LAION predictor.

`encoder/` is a `CLIPVisionModelWithProjection`, `head.safetensors` the head. Public heads and how they are wired:

* LAION-Aesthetics V1: one linear layer (`sa_0_4_vit_l_14_linear`).
* LAION-Aesthetics V2 ("improved-aesthetic-predictor"): 768 ▸ 1024 ▸ 128 ▸ 64 ▸ 16 ▸ 1 with dropout between and **no**
  activations, tensors named `layers.0.weight` … `layers.7.weight`.

The head's layers are read from the shapes of its tensors, in the order of their numbers; dropout layers have none.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from icg.exceptions import BadWeights
from icg.loading import loading
from icg.rewards.vision import Preprocessing

CONFIG = "config.json"
HEAD = "head.safetensors"


class Aesthetic(nn.Module):
    """How well a picture is made, whatever it shows: about 1 to 10 with the public heads."""

    def __init__(
        self, encoder: CLIPVisionModelWithProjection, preprocessing: Preprocessing, head: nn.Sequential
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.preprocessing = preprocessing
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """[n, 3, height, width] in [0, 1] to [n]."""
        features = self.encoder(pixel_values=self.preprocessing(images)).image_embeds
        scores: Tensor = self.head(functional.normalize(features, dim=-1))
        return scores[:, 0]

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load.

        Raises:
            BadWeights: the head cannot be read or does not fit the encoder.
        """
        folder = Path(directory)
        with loading("aesthetic reward", folder):
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                folder / "encoder", local_files_only=True, use_safetensors=True
            )
            preprocessing = Preprocessing.from_pretrained(folder / "encoder")
        try:
            head = read_head(load_file(folder / HEAD))
        except (OSError, SafetensorError) as error:
            raise BadWeights(f"the aesthetic head at {folder} cannot be read: {error}") from None
        first = head[0]
        if isinstance(first, nn.Linear) and first.in_features != encoder.config.projection_dim:
            widths = f"{first.in_features} features, its encoder gives {encoder.config.projection_dim}"
            raise BadWeights(f"the aesthetic head takes {widths}")
        return cls(encoder, preprocessing, head).eval().requires_grad_(False)

    def save_pretrained(self, directory: str | Path, processor_from: str | Path) -> None:
        folder = Path(directory)
        self.encoder.save_pretrained(folder / "encoder")
        processor = CLIPImageProcessorPil.from_pretrained(processor_from, local_files_only=True)
        processor.save_pretrained(folder / "encoder")
        state = {f"layers.{name}": value.contiguous() for name, value in self.head.state_dict().items()}
        save_file(state, folder / HEAD)
        (folder / CONFIG).write_text(json.dumps({"head": "linear layers, no activations"}, indent=2) + "\n")


def read_head(state: dict[str, Tensor]) -> nn.Sequential:
    """Linear layers from tensors such as `layers.0.weight`, or `weight` alone for the linear head.

    Raises:
        BadWeights: shapes that do not follow one another, or values that are not finite.
    """
    weights = sorted(
        (int(match[1]) if (match := re.search(r"(\d+)\.weight$", name)) else 0, name)
        for name in state
        if name.endswith("weight")
    )
    layers: list[nn.Module] = []
    previous = 0
    for _, name in weights:
        weight, bias = state[name].float(), state[name.removesuffix("weight") + "bias"].float()
        if layers and weight.shape[1] != previous:
            raise BadWeights(f"the aesthetic head's {name} has shape {tuple(weight.shape)} after {previous} features")
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise BadWeights(f"the aesthetic head's {name} or its bias holds NaN or infinity")
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
        previous = weight.shape[0]
    if not layers or previous != 1:
        raise BadWeights("the aesthetic head does not end in one score")
    return nn.Sequential(*layers)
