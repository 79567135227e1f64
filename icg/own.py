"""`icg init adapter`: a fresh adapter, and preference head, for a base and an MLLM of one's own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from icg.adapter import Adapter, AdapterConfig
from icg.conditioning import load_base
from icg.exceptions import BadWeights
from icg.loading import quietly
from icg.mllm import MLLM
from icg.preference import Head
from icg.revision import revision
from icg.rewards.preference import CoverEncoder

SAMPLES = ("a lantern at night", "a cat", "the old lighthouse keeper and the sea")
"""Prompts on which the scale of the base's own conditioning is measured."""


def init_adapter(
    directory: str | Path,
    *,
    tokens: int = 64,
    context: int = 0,
    width: int = 768,
    layers: int = 6,
    heads: int = 12,
    seed: int = 0,
    size: int | None = None,
) -> AdapterConfig:
    """Write `adapter/` and `preference/` of a folder that has `base/`, `mllm/` and `space/`.

    Its output has the scale of the base's own conditioning, its gates are shut: every user gets the neutral cover until
    it is trained. Not replaced where they are there already.

    Args:
        tokens: meta tokens, which become as many conditioning tokens.
        context: of the prompt's own last states, which become as many more.
        size: pixels a side, for bases that are told it; the base's own by default.

    Raises:
        BadWeights: a part is missing, there already or not to be used.
        Unsupported: no family drives the base.
    """
    folder = Path(directory)
    for name in ("base", "mllm", "space"):
        if not (folder / name).is_dir():
            raise BadWeights(
                f"there is no {name} at {folder / name}: put the checkpoint there, as save_pretrained does"
            )
    for name in ("adapter", "preference"):
        if (folder / name).exists():
            raise BadWeights(f"{folder / name} is there already")
    with quietly():
        base = load_base(folder / "base")
        mllm = MLLM.from_pretrained(folder / "mllm")
        dimension = CoverEncoder.from_pretrained(folder / "space").dimension
        pixels = size or int(base.denoiser.config.sample_size or 64) * base.pixels_per_latent
        told = base.text(list(SAMPLES), pixels, pixels)
    space = revision("space", folder / "space")
    config = AdapterConfig(
        space=space,
        dimension=dimension,
        features=mllm.width,
        output=base.width,
        pooled=base.pooled,
        tokens=tokens,
        context=context,
        width=width,
        layers=layers,
        heads=heads,
        scale=_scale(told.tokens),
        pooled_scale=1.0 if told.pooled is None else _scale(told.pooled),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Adapter(config).save_pretrained(folder / "adapter")
    Head.start(space, dimension).save(folder / "preference")
    return config


def _scale(told: Tensor) -> float:
    """Root mean square, to two digits."""
    return float(f"{told.float().square().mean().sqrt().item():.1e}")
