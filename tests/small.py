"""A stack of icg-tiny's classes at an eighth of its size: services that start again and again read it each time."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from icg.init import init_tiny
from icg.tiny import text
from icg.tiny.assemble import Sizes
from icg.tiny.autoencoder import AutoencoderConfig
from icg.tiny.base import BaseConfig


def small_encoder() -> BertModel:
    """In MiniLM's place, random, with its vocabulary and its positions."""
    config = BertConfig(
        vocab_size=len(text.caption_tokenizer()),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        use_attention_mask=True,  # see `text.encoder`
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config)
    return model.eval().requires_grad_(False)


SIZES = Sizes(
    vae=AutoencoderConfig(channels=(16, 24, 32, 32)), unet=BaseConfig(channels=(32, 64)), encoder=small_encoder
)


def init_small(directory: Path, seed: int = 0) -> None:
    """What `icg init tiny` writes, of random weights."""
    init_tiny(directory, seed, sizes=SIZES)
