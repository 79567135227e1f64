"""PixArt-Σ: a transformer with cross-attention to text tokens under a mask; it predicts a variance that nobody uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import PixArtTransformer2DModel

from icg.conditioning.base import Conditioning
from icg.conditioning.captioned import Captioned


class PixArtSigma(Captioned):
    told: ClassVar[dict[str, Any]] = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}

    @classmethod
    def takes(cls, pipeline: Any) -> bool:
        transformer = pipeline.components.get("transformer")
        # PixArt-α at 1024 pixels is also told its resolution.
        return isinstance(transformer, PixArtTransformer2DModel) and not transformer.use_additional_conditions

    @torch.no_grad()
    def text(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=self.device
        )
        return Conditioning(tokens, None, {"mask": mask})
