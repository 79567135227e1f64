"""Sana: linear attention over a deeply compressed picture (32 pixels a latent), text tokens under a mask."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from torch import Tensor

from icg.conditioning.base import Base, Conditioning
from icg.conditioning.flow import all_of

INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
"""What the stock pipeline writes before a prompt."""


class Sana(Base):
    unguided: ClassVar[dict[str, Any]] = {"guidance_scale": 1.0, "use_resolution_binning": False}

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.width = int(self.denoiser.config.caption_channels)
        self.patch = int(self.denoiser.config.patch_size)

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

    def condition(self, tokens: Tensor, pooled: Tensor | None, width: int, height: int) -> Conditioning:
        return Conditioning(tokens, None, {"mask": all_of(tokens)})

    def predict(self, latents: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        output: Tensor = self.denoiser(
            latents.to(self.dtype),
            encoder_hidden_states=cond.tokens.to(self.dtype),
            encoder_attention_mask=cond.extra["mask"],
            timestep=t.expand(len(latents)) * self.denoiser.config.timestep_scale,
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]].to(latents.dtype)

    def encode(self, images: Tensor) -> Tensor:
        # A deterministic autoencoder: no posterior.
        latents: Tensor = self.vae.encode(images.to(self.vae.dtype) * 2 - 1, return_dict=False)[0]
        return latents.float() * float(self.vae.config.scaling_factor)
