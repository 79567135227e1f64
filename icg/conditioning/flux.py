"""Flux.1: patches of latents and text tokens in one transformer, a pooled vector, and guidance as a number in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from icg.conditioning.base import Base, Conditioning
from icg.conditioning.flow import pack, set_shifted, unpack

DISTILLED_GUIDANCE = 3.5
"""What a guidance-distilled model (dev) is told, diffusers' own default. It costs no second call, so it is no
`SamplerConfig.guidance`, which does."""


class Flux(Base):
    unguided: ClassVar[dict[str, Any]] = {"guidance_scale": DISTILLED_GUIDANCE}

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        config = self.denoiser.config
        self.width = int(config.joint_attention_dim)
        self.pooled = int(config.pooled_projection_dim)
        self.patch = 2

    @classmethod
    def takes(cls, pipeline: Any) -> bool:
        transformer = pipeline.components.get("transformer")
        # Fill, Depth and Canny take a picture's channels beside the latents.
        return (
            isinstance(transformer, FluxTransformer2DModel)
            and transformer.config.in_channels == 4 * pipeline.vae.config.latent_channels
        )

    @torch.no_grad()
    def text(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        tokens, pooled, _ = self.pipeline.encode_prompt(list(prompts), None, device=self.device)
        return Conditioning(tokens, pooled)

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> Tensor:
        return set_shifted(scheduler, steps, (shape[1] // 2) * (shape[2] // 2), self.device)

    def predict(self, latents: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert cond.pooled is not None
        rows, _, height, width = latents.shape
        guidance = None
        if self.denoiser.config.guidance_embeds:
            guidance = torch.full([rows], DISTILLED_GUIDANCE, device=latents.device)
        output: Tensor = self.denoiser(
            hidden_states=pack(latents.to(self.dtype)),
            timestep=t.expand(rows).to(self.dtype) / 1000,
            guidance=guidance,
            pooled_projections=cond.pooled.to(self.dtype),
            encoder_hidden_states=cond.tokens.to(self.dtype),
            txt_ids=torch.zeros(cond.tokens.shape[1], 3, device=latents.device, dtype=self.dtype),
            img_ids=_places(height // 2, width // 2).to(latents.device, self.dtype),
            return_dict=False,
        )[0]
        return unpack(output, height, width).to(latents.dtype)


def _places(height: int, width: int) -> Tensor:
    """[height · width, 3]: 0, row, column of each patch."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
