"""The seam between sampling and a family of pipelines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser is told, one row a picture: every tensor's first dimension is the batch.

    `extra` holds what else a family needs per row: masks, size ids.
    """

    tokens: Tensor  # [B, N, width]
    pooled: Tensor | None = None  # [B, pooled]
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)


def select(cond: Conditioning, rows: Tensor | slice | Sequence[int]) -> Conditioning:
    """Some rows, in the order given."""
    index = rows if isinstance(rows, (slice, Tensor)) else torch.tensor(rows, device=cond.tokens.device)
    pooled = None if cond.pooled is None else cond.pooled[index]
    return Conditioning(cond.tokens[index], pooled, {name: value[index] for name, value in cond.extra.items()})


def repeat(cond: Conditioning, k: int) -> Conditioning:
    """Each row k times: a, b -> a, a, b, b."""
    return select(cond, torch.arange(len(cond), device=cond.tokens.device).repeat_interleave(k))


class Base(ABC):
    """A frozen pipeline, as sampling sees it. Latents are [B, C, h, w] in every family.

    Attributes:
        width: of a conditioning token.
        pooled: width of the pooled conditioning, 0 where the family takes none.
        patch: latents a side that the denoiser takes together.
        unguided: how the stock pipeline is told to make one call a step.
    """

    width: int
    pooled: int = 0
    patch: int = 1
    unguided: ClassVar[dict[str, Any]] = {"guidance_scale": 1.0}

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.vae: Any = pipeline.vae
        self.denoiser: Any = pipeline.components.get("unet") or pipeline.transformer
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)

    @classmethod
    @abstractmethod
    def takes(cls, pipeline: Any) -> bool:
        """Whether this family drives that pipeline, judged by its components."""

    @abstractmethod
    def text(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        """The base's own conditioning for prompts, through its own text encoders; "" is its unconditional."""

    @abstractmethod
    def predict(self, latents: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The denoiser's output for latents [B, C, h, w] that the scheduler has scaled, at t, scalar or [B]."""

    def condition(self, tokens: Tensor, pooled: Tensor | None, width: int, height: int) -> Conditioning:
        """The adapter's output as this family's conditioning."""
        return Conditioning(tokens, pooled)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """C, h, w for a picture.

        Raises:
            ValueError: if the autoencoder cannot make that size.
        """
        factor = self.pixels_per_latent
        multiple = factor * self.patch
        if width % multiple or height % multiple:
            raise ValueError(f"a cover of {width}x{height} pixels: both must be multiples of {multiple}")
        return self.latent_channels, height // factor, width // factor

    @property
    def pixels_per_latent(self) -> int:
        return int(self.pipeline.vae_scale_factor)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> Tensor:
        """Prepare `scheduler` for a whole trajectory over latents of that shape, as the stock pipeline does."""
        scheduler.set_timesteps(steps, device=self.device)
        timesteps: Tensor = scheduler.timesteps
        return timesteps

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, height, width] in [0, 1], float32."""
        config = self.vae.config
        latents = latents.to(self.vae.dtype) / config.scaling_factor
        if config.get("shift_factor"):
            latents = latents + config.shift_factor
        if config.get("latents_mean") and config.get("latents_std"):
            mean, deviation = (
                latents.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std)
            )
            latents = latents * deviation + mean
        pixels: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, C, h, w], as `decode` takes them, of pictures [B, 3, height, width] in [0, 1]: the mean."""
        config = self.vae.config
        latents: Tensor = self.vae.encode(images.to(self.vae.dtype) * 2 - 1).latent_dist.mean
        if config.get("latents_mean") and config.get("latents_std"):
            mean, deviation = (
                latents.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std)
            )
            latents = (latents - mean) / deviation
        if config.get("shift_factor"):
            latents = latents - config.shift_factor
        return latents.float() * float(config.scaling_factor)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.denoiser.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.denoiser.dtype
        return dtype
