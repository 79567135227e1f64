"""Stable Diffusion 1.x and 2.x, and XL: a UNet that looks at text tokens by cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from icg.conditioning.base import Base, Conditioning


class StableDiffusion(Base):
    """1.x and 2.x (and any UNet with cross-attention alone)."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.width = int(self.denoiser.config.cross_attention_dim)

    @classmethod
    def takes(cls, pipeline: Any) -> bool:
        return _is_text_to_image(pipeline) and pipeline.unet.config.addition_embed_type is None

    @torch.no_grad()
    def text(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        tokens, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)
        return Conditioning(tokens)

    def predict(self, latents: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        output: Tensor = self.denoiser(
            latents.to(self.dtype), t, encoder_hidden_states=cond.tokens.to(self.dtype), return_dict=False
        )[0]
        return output.to(latents.dtype)


class StableDiffusionXL(Base):
    """XL: also a pooled text vector and the picture's size."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        config = self.denoiser.config
        self.width = int(config.cross_attention_dim)
        # `text_time` embeds six size numbers beside the pooled vector.
        self.pooled = int(config.projection_class_embeddings_input_dim) - 6 * int(config.addition_time_embed_dim)
        if self.vae.config.force_upcast:
            self.vae.to(torch.float32)  # It overflows in half precision.

    @classmethod
    def takes(cls, pipeline: Any) -> bool:
        # The refiner takes an aesthetic score for a sixth number: another meaning of time ids, and no text-to-image.
        return (
            _is_text_to_image(pipeline)
            and pipeline.unet.config.addition_embed_type == "text_time"
            and not pipeline.config.get("requires_aesthetics_score", False)
        )

    @torch.no_grad()
    def text(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        if self.pipeline.config.force_zeros_for_empty_prompt:
            kept = torch.tensor([float(bool(prompt)) for prompt in prompts], device=self.device, dtype=tokens.dtype)
            tokens, pooled = tokens * kept[:, None, None], pooled * kept[:, None]
        return self.condition(tokens, pooled, width, height)

    def condition(self, tokens: Tensor, pooled: Tensor | None, width: int, height: int) -> Conditioning:
        # Original size, crop and target size: the picture is wanted whole and at its own size.
        sizes = torch.tensor([height, width, 0, 0, height, width], device=tokens.device, dtype=torch.float32)
        return Conditioning(tokens, pooled, {"time_ids": sizes.expand(len(tokens), 6)})

    def predict(self, latents: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert cond.pooled is not None
        added = {"text_embeds": cond.pooled.to(self.dtype), "time_ids": cond.extra["time_ids"].to(self.dtype)}
        output: Tensor = self.denoiser(
            latents.to(self.dtype),
            t,
            encoder_hidden_states=cond.tokens.to(self.dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output.to(latents.dtype)


def _is_text_to_image(pipeline: Any) -> bool:
    unet, vae = pipeline.components.get("unet"), pipeline.components.get("vae")
    return (
        isinstance(unet, UNet2DConditionModel)
        and isinstance(vae, AutoencoderKL)
        # More input channels than latents: inpainting, depth, upscaling, which also want a picture.
        and unet.config.in_channels == vae.config.latent_channels
        and unet.config.class_embed_type is None
        and isinstance(unet.config.cross_attention_dim, int)
        and unet.config.encoder_hid_dim is None
        and unet.config.time_cond_proj_dim is None
    )
