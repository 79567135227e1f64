"""Stable Diffusion 3 and 3.5: text tokens and latents in one transformer, and a pooled text vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from icg.conditioning.base import Base, Conditioning
from icg.conditioning.flow import time_shift


class StableDiffusion3(Base):
    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        config = self.denoiser.config
        self.width = int(config.joint_attention_dim)
        self.pooled = int(config.pooled_projection_dim)
        self.patch = int(config.patch_size)

    @classmethod
    def takes(cls, pipeline: Any) -> bool:
        return isinstance(pipeline.components.get("transformer"), SD3Transformer2DModel)

    @torch.no_grad()
    def text(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), None, None, device=self.device, do_classifier_free_guidance=False
        )
        return Conditioning(tokens, pooled)

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> Tensor:
        shift = {}
        if scheduler.config.get("use_dynamic_shifting"):
            length = (shape[1] // self.patch) * (shape[2] // self.patch)
            shift["mu"] = time_shift(scheduler, length, most=1.16)
        scheduler.set_timesteps(steps, device=self.device, **shift)
        timesteps: Tensor = scheduler.timesteps
        return timesteps

    def predict(self, latents: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert cond.pooled is not None
        output: Tensor = self.denoiser(
            hidden_states=latents.to(self.dtype),
            timestep=t.expand(len(latents)),
            encoder_hidden_states=cond.tokens.to(self.dtype),
            pooled_projections=cond.pooled.to(self.dtype),
            return_dict=False,
        )[0]
        return output.to(latents.dtype)
