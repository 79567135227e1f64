"""The base's own guided prediction, which a warmed-up adapter gives in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from icg.conditioning import Base, Conditioning, select


@torch.no_grad()
def guided(
    base: Base, noisy: Tensor, t: Tensor, text: Conditioning, blank: Conditioning, guidance: float, rescale: float
) -> Tensor:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598), rescaled (Lin et al., arXiv 2305.08891).

    Args:
        noisy: [B, C, h, w].
        t: [B].
        text: B rows.
        blank: one row, the base's conditioning for "".
        guidance: 1 is the conditional prediction itself.
        rescale: how far the guided prediction's deviation is brought back to the conditional one's, 0 to 1: without it
            pictures of models that reach pure noise are overexposed.
    """
    conditional = base.predict(noisy, t, text)
    if guidance == 1.0:
        return conditional
    unconditional = base.predict(noisy, t, select(blank, [0] * len(noisy)))
    mixed = unconditional + guidance * (conditional - unconditional)
    deviations = (conditional.std(dim=(1, 2, 3), keepdim=True), mixed.std(dim=(1, 2, 3), keepdim=True))
    return torch.lerp(mixed, mixed * (deviations[0] / deviations[1].clamp_min(1e-6)), rescale)
