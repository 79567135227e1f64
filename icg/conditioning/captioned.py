"""What PixArt-Σ and Sana have in common: a transformer with cross-attention to caption tokens under a mask."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from icg.conditioning.base import Base, Conditioning
from icg.conditioning.flow import all_of


class Captioned(Base):
    """Attributes:
    told: what else the denoiser is called with.
    time_scale: of the timesteps that it is told.
    """

    unguided: ClassVar[dict[str, Any]] = {"guidance_scale": 1.0, "use_resolution_binning": False}
    told: ClassVar[dict[str, Any]] = {}
    time_scale: float = 1.0

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.width = int(self.denoiser.config.caption_channels)
        self.patch = int(self.denoiser.config.patch_size)

    def condition(self, tokens: Tensor, pooled: Tensor | None, width: int, height: int) -> Conditioning:
        return Conditioning(tokens, None, {"mask": all_of(tokens)})

    def predict(self, latents: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        output: Tensor = self.denoiser(
            latents.to(self.dtype),
            encoder_hidden_states=cond.tokens.to(self.dtype),
            encoder_attention_mask=cond.extra["mask"],
            timestep=t.expand(len(latents)) * self.time_scale,
            return_dict=False,
            **self.told,
        )[0]
        # Beyond the latents' channels lies a variance, which nobody uses.
        return output[:, : latents.shape[1]].to(latents.dtype)
