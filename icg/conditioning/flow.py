"""What the flow-matching transformers have in common: a time shift by length, patches, and a mask of the text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def time_shift(scheduler: Any, length: int, most: float = 1.15) -> float:
    """`mu`, which moves the timesteps towards noise for longer sequences (diffusers' `calculate_shift`)."""
    config = scheduler.config
    shortest, longest = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", most)
    slope = (high - low) / (longest - shortest)
    return float(low + slope * (length - shortest))


def set_shifted(scheduler: Any, steps: int, length: int, device: torch.device) -> Tensor:
    """Sigmas from 1 to 1/steps in equal steps, then shifted, as Flux and those after it do."""
    sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
    scheduler.set_timesteps(sigmas=sigmas, mu=time_shift(scheduler, length), device=device)
    timesteps: Tensor = scheduler.timesteps
    return timesteps


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] to patches of 2x2: [B, h/2 · w/2, 4 C]."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(patches: Tensor, height: int, width: int) -> Tensor:
    """The way back, to [B, C, height, width]."""
    batch, _, channels = patches.shape
    latents = patches.view(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return latents.reshape(batch, channels // 4, height, width)


def all_of(tokens: Tensor) -> Tensor:
    """A mask [B, N] that hides no token."""
    return torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
