"""What the stages are made of: a loaded stack, a catalogue, and what is computed of them once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from icg.alignment.cache import Cache
from icg.alignment.catalogue import Catalogue
from icg.alignment.noise import NoisePath
from icg.conditioning import Base, Conditioning
from icg.generator import CoverGenerator
from icg.item import Item
from icg.mllm import Inputs
from icg.rewards.vision import pixels
from icg.sampling import get_scheduler
from icg.training import Batch

SLOTS = 16
"""Captions and pictures in every call that encodes them."""

TIMES = 5
"""Training visits five times as many times as the sampler: another number of steps may be asked for one day."""


class Asked(NamedTuple):
    """What the MLLM is shown of an item: a text, a picture of the catalogue, or both."""

    text: str | None
    reference: int | None


@dataclass(frozen=True)
class Asking:
    """How items are shown in training: as platforms publish them, some without a picture, some without a title."""

    drop_reference: float = 0.40  # share of rows without reference image
    drop_title: float = 0.15  # share of rows without title; never the same rows
    bare: float = 0.5  # of the titles, share that stands without a template
    captions: float = 0.3  # share of rows called by one of their further captions, where they have any

    @classmethod
    def by_title(cls) -> Self:
        """Bare titles alone, as platforms have them: what a caption says of a picture's style is a user's to say."""
        return cls(bare=1.0, captions=0.0)

    def draw(self, catalogue: Catalogue, rows: Tensor, generator: torch.Generator) -> Batch:
        """For rows [n]: `text` (number of a text of each row), `titled` (bool), `reference` (a picture, or -1), [n]."""
        chance = torch.rand(5, len(rows), generator=generator).tolist()
        texts, references = [], []
        for place, row in enumerate(rows.tolist()):
            of_row, plain = len(catalogue.texts(row)), len(catalogue.texts(row)) - len(catalogue.captions[row])
            if of_row > plain and chance[0][place] < self.captions:
                texts.append(plain + int(chance[1][place] * (of_row - plain)))
            elif chance[2][place] < self.bare:
                texts.append(0)
            else:
                texts.append(1 + int(chance[1][place] * (plain - 1)))
            some = catalogue.references[row]
            dropped = not len(some) or chance[3][place] < self.drop_reference
            references.append(-1 if dropped else int(some[int(chance[4][place] * len(some))]))
        reference = torch.tensor(references)
        fate = torch.tensor(chance[3])
        untitled = (fate >= 1 - self.drop_title) & (reference >= 0)
        return {"rows": rows, "text": torch.tensor(texts), "titled": ~untitled, "reference": reference}


class Material:
    """A stack and a catalogue.

    Attributes:
        base: frozen.
        path: between clean and noisy, of this base.
        times: [n], the timesteps that training visits.
    """

    def __init__(self, stack: CoverGenerator, catalogue: Catalogue, kept_bytes: int = 2**29) -> None:
        self.stack = stack
        self.base: Base = stack.base
        self.catalogue = catalogue
        self.size = (stack.sampler.width, stack.sampler.height)
        self.path = NoisePath.of(self.base.pipeline.scheduler)
        scheduler = get_scheduler(self.base, stack.sampler.scheduler)
        shape = self.base.latent_shape(*self.size)
        self.times = self.base.set_timesteps(scheduler, TIMES * stack.sampler.steps, shape).float().cpu()
        self._meta = stack.adapter.meta.detach().clone()  # as loaded, whatever is trained in place
        self.blank = self.base.text([""], *self.size)
        self._latents: Cache[int] = Cache(self._encode, SLOTS, kept_bytes)
        self._inputs: Cache[Asked] = Cache(self._prepare, 1, kept_bytes)
        self._features: Cache[Asked] = Cache(self._read, 1, kept_bytes)
        self._texts: Cache[str] = Cache(self._text, SLOTS, kept_bytes)

    def asked(self, batch: Batch) -> list[Asked]:
        """What `Asking.draw` drew."""
        rows = zip(*(batch[name].tolist() for name in ("rows", "text", "titled", "reference")), strict=True)
        return [
            Asked(self.catalogue.texts(row)[text] if titled else None, reference if reference >= 0 else None)
            for row, text, titled, reference in rows
        ]

    def titles(self, batch: Batch) -> list[str]:
        """The bare titles of its rows."""
        return [self.catalogue.titles[row] for row in batch["rows"].tolist()]

    def draw_noise(self, count: int, generator: torch.Generator, start: float = 0.0, end: float = 1.0) -> Batch:
        """`noise` [count, C, h, w]; `times` [count], evenly from those that sampling visits.

        Args:
            start, end: between which shares of the way from noise to picture.
        """
        first = min(int(start * len(self.times)), len(self.times) - 1)
        which = torch.randint(first, max(first + 1, int(end * len(self.times))), (count,), generator=generator)
        shape = (count, *self.base.latent_shape(*self.size))
        return {"noise": torch.randn(shape, generator=generator), "times": self.times[which]}

    def prepared(self, asked: Sequence[Asked]) -> list[Inputs]:
        """Inputs of the MLLM, one an item."""
        return list(self._inputs(asked))

    def features(self, asked: Sequence[Asked]) -> Tensor:
        """What the stack's meta tokens, as they were loaded, read: [n, tokens, features].

        Each is read alone, as `CoverGenerator.encode` does.
        """
        return torch.cat([kept["features"] for kept in self._features(asked)])

    def latents(self, rows: Sequence[int]) -> Tensor:
        """Clean latents [n, C, h, w] of the rows' pictures."""
        return torch.cat([kept["latents"] for kept in self._latents(rows)])

    def texts(self, captions: Sequence[str]) -> Conditioning:
        """The base's own conditioning for captions, through its own text encoders."""
        return _joined(self._texts(captions))

    def rows_with_reference(self) -> list[int]:
        """Rows that have a reference, or all where none has."""
        found = [row for row in range(len(self.catalogue)) if len(self.catalogue.references[row])]
        return found or list(range(len(self.catalogue)))

    def called(self, batch: Batch) -> Conditioning:
        """`texts` of what `Asking.draw` calls its rows, also where the MLLM is not told."""
        pairs = zip(batch["rows"].tolist(), batch["text"].tolist(), strict=True)
        return self.texts([self.catalogue.texts(row)[text] for row, text in pairs])

    def condition(self, tokens: Tensor, pooled: Tensor | None) -> Conditioning:
        """An adapter's output as the base takes it."""
        return self.base.condition(tokens, pooled, *self.size)

    def pixels(self, number: int) -> Image.Image:
        """A picture of the catalogue at the covers' size, transparency on white, the middle of it if it is longer."""
        picture = self.catalogue.picture(number)
        if picture.mode != "RGB":
            layer = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        return ImageOps.fit(picture, self.size, Image.Resampling.BICUBIC)

    @torch.no_grad()
    def _encode(self, rows: Sequence[int]) -> list[dict[str, Tensor]]:
        latents = self.base.encode(pixels([self.pixels(row) for row in rows]).to(self.base.device))
        return [{"latents": row[None].clone()} for row in latents]

    def _prepare(self, asked: Sequence[Asked]) -> list[Inputs]:
        prompt = self.stack.adapter.config.prompt
        return [self.stack.mllm.prepare(self.item(one), prompt) for one in asked]

    @torch.no_grad()
    def _read(self, asked: Sequence[Asked]) -> list[dict[str, Tensor]]:
        context = self.stack.adapter.config.context
        return [{"features": self.stack.mllm.read_prepared([one], self._meta, context)} for one in self.prepared(asked)]

    def item(self, asked: Asked) -> Item:
        """What is asked, as the generator takes it."""
        return Item(asked.text, None if asked.reference is None else self.catalogue.picture(asked.reference))

    def _text(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        cond = self.base.text(captions, *self.size)
        named = {"tokens": cond.tokens, **cond.extra, **({} if cond.pooled is None else {"pooled": cond.pooled})}
        return [{name: value[row][None].clone() for name, value in named.items()} for row in range(len(captions))]


def evenly(rows: Sequence[int], count: int) -> list[int]:
    """`count` of the rows, evenly spaced, in order; all if there are fewer."""
    return [rows[place] for place in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def _joined(parts: Sequence[dict[str, Tensor]]) -> Conditioning:
    """Rows of conditioning as one. Families without a fixed length hide with their mask what a shorter text lacks."""
    longest = max(part["tokens"].shape[1] for part in parts)
    if any(part["tokens"].shape[1] < longest for part in parts):
        parts = [_padded(part, longest) for part in parts]
    extra = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name not in {"tokens", "pooled"}}
    pooled = torch.cat([part["pooled"] for part in parts]) if "pooled" in parts[0] else None
    return Conditioning(torch.cat([part["tokens"] for part in parts]), pooled, extra)


def _padded(part: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    tokens = part["tokens"]
    missing = length - tokens.shape[1]
    mask = part.get("mask", torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device))
    return {
        **part,
        "tokens": functional.pad(tokens, (0, 0, 0, missing)),
        "mask": functional.pad(mask, (0, missing)),
    }
