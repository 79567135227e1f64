"""Diffusion models at their published sizes, from config, with random weights: for what speed and memory depend on.

No checkpoint is at hand here, and none is needed: time and memory depend on shapes alone. Configs are those of the
`unet/config.json` and `vae/config.json` of the named checkpoints; the number of parameters is checked by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from icg.adapter import Adapter, AdapterConfig
from icg.conditioning import base_of
from icg.generator import CoverGenerator
from icg.mllm import MLLM
from icg.sampling import SamplerConfig
from icg.tiny import mllm as tiny_mllm

SD_VAE: Mapping[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}

SD15_UNET: Mapping[str, Any] = {
    # stable-diffusion-v1-5/stable-diffusion-v1-5
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}

SDXL_UNET: Mapping[str, Any] = {
    # stabilityai/stable-diffusion-xl-base-1.0
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@dataclass(frozen=True)
class FullSize:
    """A checkpoint's shapes, and the size in pixels that it was made for."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    pixels: int

    @property
    def is_xl(self) -> bool:
        return self.unet.get("addition_embed_type") == "text_time"


FULL = {
    "sd15": FullSize(SD15_UNET, {**SD_VAE, "scaling_factor": 0.18215}, 512),
    # The stock VAE overflows in fp16 and asks for float32; in bf16 it does not, and both arms take it alike.
    "sdxl": FullSize(SDXL_UNET, {**SD_VAE, "scaling_factor": 0.13025, "force_upcast": False}, 1024),
}

_SMALL_UNET = {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": 2, "cross_attention_dim": 16}
_SMALL_XL = {
    "block_out_channels": (32, 64, 64),
    "attention_head_dim": (2, 4, 4),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}


def shrunk(full: FullSize) -> FullSize:
    """The same blocks, narrow: what tests build."""
    small = _SMALL_XL if full.is_xl else _SMALL_UNET
    return FullSize(
        {**full.unet, **small, "layers_per_block": 1},
        {**full.vae, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
        64,
    )


def build(full: FullSize, mllm: Path | None, device: str, sampler: SamplerConfig) -> CoverGenerator:
    """A generator of random weights, made on the device.

    Args:
        mllm: folder of what reads the items, once an item in every arm; None: that of icg-tiny, of random weights.
    """
    dtype = sampler.torch_dtype
    with torch.device(device):
        unet = UNet2DConditionModel(**full.unet).to(dtype)
        vae = AutoencoderKL(**full.vae).to(dtype)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    # Conditioning comes from the adapter: no text encoder is asked, so none is built.
    if full.is_xl:
        pipeline = StableDiffusionXLPipeline(vae, None, None, None, None, unet, scheduler, add_watermarker=False)
    else:
        pipeline = StableDiffusionPipeline(vae, None, None, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    for module in (unet, vae):
        module.to(memory_format=torch.channels_last)
    base = base_of(pipeline)
    reader = MLLM(tiny_mllm.build(), tiny_mllm.processor()) if mllm is None else MLLM.from_pretrained(mllm)
    reader.model.to(device, dtype)
    config = AdapterConfig("0" * 64, 64, reader.width, base.width, pooled=base.pooled, tokens=64, width=768, layers=6)
    adapter = Adapter(config)
    adapter.set_gates(1.0)
    return CoverGenerator(base, reader, adapter, sampler)
