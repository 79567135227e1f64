"""MiniLM's states of every caption that training can draw, computed once: MiniLM costs as much as the denoiser."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from icg.tiny import text
from icg.tiny.captions import BARE, TEMPLATES, WITH_WORDS, WORDS, plain, with_words
from icg.tiny.data import Pictures
from icg.tiny.files import fingerprint, write_whole


@dataclass(frozen=True)
class CaptionStates:
    """States of the captions of n pictures with m titles; `rows` below are rows of the pictures."""

    plain: Tensor  # [m, len(TEMPLATES), tokens, WIDTH] float16, the bare title first
    worded: Tensor  # [n, tokens, WIDTH] float16, title and attribute words
    empty: Tensor  # [tokens, WIDTH] float16, of the caption ""
    title: Tensor  # [n] int64, which of the m titles a picture has

    def draw(self, rows: Tensor, generator: torch.Generator, drop: float = 0.0) -> Tensor:
        """States [len(rows), tokens, WIDTH] float32 of a caption for each picture.

        WITH_WORDS of them carry attribute words, BARE of the others are the bare title, the rest are in a template; a
        share `drop` is empty.
        """
        chance = torch.rand(3, len(rows), generator=generator)
        template = torch.randint(1, len(TEMPLATES), (len(rows),), generator=generator)
        template[chance[0] < BARE] = 0
        states = self.plain[self.title[rows], template].float()
        states = torch.where((chance[1] < WITH_WORDS)[:, None, None], self.worded[rows].float(), states)
        return torch.where((chance[2] < drop)[:, None, None], self.empty.float(), states)


def cached_states(pictures: Pictures, data: Path, folder: Path, device: str = "cpu") -> CaptionStates:
    """Read the states for the pictures of the file `data`, or compute and keep them in `folder` (minutes on a CPU)."""
    recipe = f"{fingerprint(data)} {len(pictures)} {TEMPLATES} {WORDS} {text.CAPTION_TOKENS}"
    cache = folder / f"captions-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
    if not cache.exists():
        states = compute(pictures, device)
        write_whole(cache, lambda partial: save_file(vars(states), partial))
    return CaptionStates(**load_file(cache))


def compute(pictures: Pictures, device: str = "cpu") -> CaptionStates:
    """Encode every caption of the pictures on the device; the states lie on the CPU."""
    titles, title = np.unique(pictures.titles, return_inverse=True)
    captions = [caption for one in titles for caption in plain(str(one))] + with_words(pictures) + [""]
    model, tokenizer = text.encoder(device), text.caption_tokenizer()
    # In parts, so that the float32 states of all captions never lie in memory beside the float16 ones.
    states = torch.cat(
        [
            text.caption_states(model, tokenizer, captions[start : start + 512])[0].half().cpu()
            for start in range(0, len(captions), 512)
        ]
    )
    shape = (len(titles), len(TEMPLATES), *states.shape[1:])
    return CaptionStates(
        plain=states[: shape[0] * shape[1]].reshape(shape),
        worded=states[shape[0] * shape[1] : -1],
        empty=states[-1].clone(),
        title=torch.from_numpy(title),
    )
