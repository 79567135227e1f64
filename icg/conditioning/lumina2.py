"""Lumina Image 2.0: text tokens under a mask beside patches; its time runs the other way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor

from icg.conditioning.base import Base, Conditioning
from icg.conditioning.flow import all_of, set_shifted


class Lumina2(Base):
    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.width = int(self.denoiser.config.cap_feat_dim)
        self.patch = int(self.denoiser.config.patch_size)

    @classmethod
    def takes(cls, pipeline: Any) -> bool:
        return isinstance(pipeline.components.get("transformer"), Lumina2Transformer2DModel)

    @torch.no_grad()
    def text(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=self.device
        )
        return Conditioning(tokens, None, {"mask": mask})

    def condition(self, tokens: Tensor, pooled: Tensor | None, width: int, height: int) -> Conditioning:
        return Conditioning(tokens, None, {"mask": all_of(tokens)})

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> Tensor:
        # The stock pipeline takes the number of channels for the length (`latents.shape[1]`), and so was it tuned.
        return set_shifted(scheduler, steps, shape[0], self.device)

    def predict(self, latents: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        steps = self.pipeline.scheduler.config.num_train_timesteps
        output: Tensor = self.denoiser(
            hidden_states=latents.to(self.dtype),
            timestep=(1 - t / steps).expand(len(latents)),
            encoder_hidden_states=cond.tokens.to(self.dtype),
            encoder_attention_mask=cond.extra["mask"],
            return_dict=False,
        )[0]
        return -output.to(latents.dtype)
