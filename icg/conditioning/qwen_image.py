"""Qwen-Image: patches and text tokens in one transformer; a video autoencoder of one frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from icg.conditioning.base import Base, Conditioning
from icg.conditioning.flow import pack, set_shifted, unpack


class QwenImage(Base):
    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.width = int(self.denoiser.config.joint_attention_dim)
        self.patch = 2

    @classmethod
    def takes(cls, pipeline: Any) -> bool:
        transformer = pipeline.components.get("transformer")
        return isinstance(transformer, QwenImageTransformer2DModel) and not transformer.config.guidance_embeds

    @torch.no_grad()
    def text(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        tokens, mask = self.pipeline.encode_prompt(list(prompts), device=self.device)
        return Conditioning(tokens, None, {} if mask is None else {"mask": mask})

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.z_dim)

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> Tensor:
        return set_shifted(scheduler, steps, (shape[1] // 2) * (shape[2] // 2), self.device)

    def predict(self, latents: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        rows, _, height, width = latents.shape
        output: Tensor = self.denoiser(
            hidden_states=pack(latents.to(self.dtype)),
            timestep=t.expand(rows).to(self.dtype) / 1000,
            encoder_hidden_states_mask=cond.extra.get("mask"),  # None: all tokens count
            encoder_hidden_states=cond.tokens.to(self.dtype),
            img_shapes=[[(1, height // 2, width // 2)]] * rows,
            return_dict=False,
        )[0]
        return unpack(output, height, width).to(latents.dtype)

    def encode(self, images: Tensor) -> Tensor:
        frames = images.to(self.vae.dtype)[:, :, None] * 2 - 1  # a video of one frame
        mean, deviation = self._standard(frames)
        latents: Tensor = self.vae.encode(frames).latent_dist.mean[:, :, 0]
        return ((latents - mean) / deviation).float()

    def decode(self, latents: Tensor) -> Tensor:
        frames = latents.to(self.vae.dtype)
        mean, deviation = self._standard(frames)
        pixels: Tensor = self.vae.decode((frames * deviation + mean)[:, :, None], return_dict=False)[0][:, :, 0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _standard(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each latent channel."""
        config = self.vae.config
        mean, deviation = (like.new_tensor(v)[:, None, None] for v in (config.latents_mean, config.latents_std))
        return mean, deviation
