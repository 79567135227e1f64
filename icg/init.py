"""`icg init tiny`: a whole stack at a small size, in the folders that become the parts of a release."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from icg.adapter import Adapter, AdapterConfig
from icg.conditioning import Base, load_base
from icg.loading import quietly
from icg.mllm import MLLM
from icg.preference import Head
from icg.revision import revision
from icg.rewards.aesthetic import Aesthetic
from icg.rewards.vision import Preprocessing
from icg.tiny import assemble, preference
from icg.tuned import FILE as SAMPLER

DIMENSION = 64
"""Of user vectors, cover embeddings and the preference head."""

TOKENS = 16
"""Meta tokens of the tiny adapter: a title of the catalogue is 3 to 12 tokens long."""
CONTEXT = 24
"""States of the prompt beside them: as many tokens as the tiny base is used to."""

SIZE = 64

LOUDNESS = 10.0
"""A UNet of random weights hardly heeds its conditioning: two users' covers differ by 2 of 255 at the base's own scale,
by 8 at ten times that. A trained one is given its own."""


def init_tiny(
    directory: str | Path,
    seed: int = 0,
    *,
    weights: str | Path | None = None,
    gates: float = 1.0,
    sizes: assemble.Sizes | None = None,
) -> None:
    """Write `base/ mllm/ adapter/ rewards/ space/ preference/`; existing ones are replaced.

    The same seed gives the same bytes: fresh weights come from integers, not from the vector units of this machine.

    Args:
        weights: folder of trained parts (see `icg.tiny.assemble.build`); random ones without.
        gates: of a fresh adapter, where `weights` has none. At 0 every user gets the neutral cover; at 1 segments can
            be told apart by eye.
        sizes: of base, MLLM and relevance reward; icg-tiny's without.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("base", "mllm", "adapter", "rewards", "space", "preference"):
        shutil.rmtree(folder / part, ignore_errors=True)
    with quietly():
        assemble.build(folder, Path(weights) if weights is not None else None, seed, sizes)
        if weights is not None and any(Path(weights).glob("preference-*.safetensors")):
            space = _write_taste(folder, Path(weights))
        else:
            _write_space(folder / "space", seed)
            space = revision("space", folder / "space")
            Head.start(space, DIMENSION).save(folder / "preference")
            _write_aesthetic(folder / "rewards" / "aesthetic", folder / "space", seed)
        _write_adapter(folder, space, seed, gates, Path(weights) if weights is not None else None)


def randomise(module: nn.Module, seed: int) -> None:
    """Fresh weights, the same on every machine: uniform with deviation 1/√inputs, biases 0, gains kept.

    torch's normal distribution runs through the machine's own vector units; 24-bit integers do not.
    """
    gains = {id(norm.weight) for norm in module.modules() if isinstance(norm, nn.LayerNorm)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif id(parameter) not in gains:
                stream = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
                whole = stream.integers(-(2**23), 2**23, size=tuple(parameter.shape), dtype=np.int32)
                fan_in = parameter[0].numel() if parameter.ndim > 1 else len(parameter)
                # Uniform in [-1, 1) has deviation 1/√3.
                scale = np.float32(np.sqrt(3 / fan_in) / 2**23)
                parameter.copy_(torch.from_numpy(whole.astype(np.float32) * scale))


def _encoder(seed: int) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        projection_dim=DIMENSION,
    )
    model = CLIPVisionModelWithProjection(config)
    model.eval()
    randomise(model, seed)
    # With random weights the class token says mostly what it said at the start, and every picture looks alike (cosine
    # 0.97 to 1). From nothing it says what it reads in the patches, and what they show outweighs where they lie.
    embeddings = model.vision_model.embeddings
    with torch.no_grad():
        embeddings.class_embedding.zero_()
        embeddings.position_embedding.weight.mul_(0.1)
        embeddings.position_embedding.weight[0].zero_()
    return model


def _processor() -> CLIPImageProcessorPil:
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=half, image_std=half
    )


def _write_taste(folder: Path, weights: Path) -> str:
    """The trained space, its head and what people like on average; the space's revision."""
    encoder, head = preference.encoder(), Head.start("", DIMENSION)
    own = preference.own_weights(encoder, head)  # shares the memory of both
    assemble.load_part(own, weights, "preference")
    preference.save(encoder, head, folder)
    (folder / "aesthetic").rename(folder / "rewards" / "aesthetic")
    return Head.load(folder / "preference").space


def _write_space(folder: Path, seed: int) -> None:
    _encoder(seed + 1).save_pretrained(folder)
    _processor().save_pretrained(folder)


def _write_aesthetic(folder: Path, processor: Path, seed: int) -> None:
    # As wide and deep as LAION's predictor for its features, on ours.
    last = nn.Linear(32, 1)
    head = nn.Sequential(nn.Linear(DIMENSION, 32), last)
    randomise(head, seed + 3)
    nn.init.constant_(last.bias, 5.0)
    Aesthetic(_encoder(seed + 2), Preprocessing.from_pretrained(processor), head).save_pretrained(folder, processor)


def _write_adapter(folder: Path, space: str, seed: int, gates: float, weights: Path | None) -> None:
    base = load_base(folder / "base")
    mllm = MLLM.from_pretrained(folder / "mllm")
    config = AdapterConfig(
        space=space,
        dimension=DIMENSION,
        features=mllm.width,
        output=base.width,
        pooled=base.pooled,
        tokens=TOKENS,
        context=CONTEXT,
        width=192,
        layers=3,
        heads=6,
        scale=(LOUDNESS if weights is None else 1.0) * base_scale(base),
    )
    adapter = Adapter(config)
    if weights is not None and any(weights.glob("adapter-*.safetensors")):
        assemble.load_part(adapter.state_dict(), weights, "adapter")
    else:
        randomise(adapter, seed)
        if weights is not None:
            adapter.let_through()
        adapter.set_gates(gates)
    adapter.save_pretrained(folder / "adapter")
    if weights is not None and (weights / SAMPLER).exists():
        shutil.copy(weights / SAMPLER, folder / "adapter" / SAMPLER)


def base_scale(base: Base) -> float:
    """Root mean square of the base's own text conditioning, to two digits.

    Coarse, so that another machine's last bits do not make another adapter.
    """
    tokens = base.text(["a lantern at night", "a cat"], SIZE, SIZE).tokens
    return float(f"{tokens.square().mean().sqrt().item():.1e}")
