"""Z-Image: lists of latents and of text tokens in one transformer; its time runs the other way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from icg.conditioning.base import Base, Conditioning
from icg.conditioning.flow import all_of, set_shifted


class ZImage(Base):
    unguided: ClassVar[dict[str, Any]] = {"guidance_scale": 0.0}

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.width = int(self.denoiser.config.cap_feat_dim)
        self.patch = 2

    @classmethod
    def takes(cls, pipeline: Any) -> bool:
        return isinstance(pipeline.components.get("transformer"), ZImageTransformer2DModel)

    @torch.no_grad()
    def text(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        rows, _ = self.pipeline.encode_prompt(list(prompts), device=self.device, do_classifier_free_guidance=False)
        mask = [torch.ones(len(row), dtype=torch.int64, device=row.device) for row in rows]
        return Conditioning(pad_sequence(rows, batch_first=True), None, {"mask": pad_sequence(mask, batch_first=True)})

    def condition(self, tokens: Tensor, pooled: Tensor | None, width: int, height: int) -> Conditioning:
        return Conditioning(tokens, None, {"mask": all_of(tokens)})

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> Tensor:
        return set_shifted(scheduler, steps, (shape[1] // 2) * (shape[2] // 2), self.device)

    def predict(self, latents: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        tokens = cond.tokens.to(self.dtype)
        output = self.denoiser(
            list(latents.to(self.dtype)[:, :, None]),
            (1000 - t.expand(len(latents))) / 1000,
            [row[kept.bool()] for row, kept in zip(tokens, cond.extra["mask"], strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack([row[:, 0] for row in output]).to(latents.dtype)
