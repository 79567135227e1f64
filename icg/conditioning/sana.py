"""Sana: linear attention over a deeply compressed picture (32 pixels a latent), text tokens under a mask."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from torch import Tensor

from icg.conditioning.base import Conditioning
from icg.conditioning.captioned import Captioned

INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
"""What the stock pipeline writes before a prompt."""


class Sana(Captioned):
    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.time_scale = float(self.denoiser.config.timestep_scale)

    @classmethod
    def takes(cls, pipeline: Any) -> bool:
        transformer = pipeline.components.get("transformer")
        # Sprint embeds its guidance and is sampled by a scheduler of its own.
        return isinstance(transformer, SanaTransformer2DModel) and not transformer.config.guidance_embeds

    @torch.no_grad()
    def text(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.device,
            complex_human_instruction=INSTRUCTION,
        )
        return Conditioning(tokens, None, {"mask": mask})

    def encode(self, images: Tensor) -> Tensor:
        # A deterministic autoencoder: no posterior.
        latents: Tensor = self.vae.encode(images.to(self.vae.dtype) * 2 - 1, return_dict=False)[0]
        return latents.float() * float(self.vae.config.scaling_factor)
