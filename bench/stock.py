"""The stock diffusers pipeline as a contender: what drawing for people costs without our loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from icg.evaluation.contenders import Case, Drawn, Reader
from icg.evaluation.contenders.base import clock
from icg.generator import CoverGenerator
from icg.sampling import get_scheduler
from icg.slots import chunks

LONGEST = 128
"""Tokens that a guided call may be told: more would be a cost that stock does not have."""


class Stock:
    """Covers of the adapter's conditioning, drawn by the pipeline's own `__call__`, `batch` covers a call.

    An item is read once and its conditioning made in one go, as in ICG; the scheduler is ICG's, too.
    """

    def __init__(self, generator: CoverGenerator, steps: int, guidance: float, batch: int) -> None:
        self.generator = CoverGenerator(generator.base, generator.mllm, generator.adapter, generator.sampler)
        self.steps = steps
        self.guidance = guidance
        self.batch = batch
        self.name = f"stock_{steps}_{guidance:g}_{batch}"
        if guidance > 1 and not self.can_guide(generator):
            raise ValueError(f"the stock pipeline cannot be guided beside {generator.adapter.config.length} tokens")

    @staticmethod
    def can_guide(generator: CoverGenerator) -> bool:
        """Whether the pipeline can be told the base's own unconditional beside the adapter's tokens, in one call.

        It wants both of one length. Repeated as a whole either says the same to attention, so both are repeated to
        the least common multiple of their lengths, where that is not far away. A pooled vector may not be at hand.
        """
        return not generator.base.pooled and _common(generator) <= LONGEST

    @torch.inference_mode()
    def draw(self, items: Sequence[Case], users: Sequence[Reader], seeds: Sequence[int]) -> Drawn:
        base, sampler = self.generator.base, self.generator.sampler
        own, base.pipeline.scheduler = base.pipeline.scheduler, get_scheduler(base, sampler.scheduler)
        try:
            return self._draw(items, users, seeds)
        finally:
            base.pipeline.scheduler = own

    def _draw(self, items: Sequence[Case], users: Sequence[Reader], seeds: Sequence[int]) -> Drawn:
        base, sampler = self.generator.base, self.generator.sampler
        vectors = torch.stack([torch.from_numpy(reader.vector) for reader in users]).to(base.device)
        calls = 0
        with clock() as seconds:
            tokens, pooled, noise = [], [], []
            for case, seed in zip(items, seeds, strict=True):
                context = self.generator.encode([case.item(users[0])])
                features = context.features.expand(len(users), -1, -1)
                made = self.generator.adapter.personalise(features, vectors, None, sampler.personalization)
                tokens.append(made[0])
                pooled.append(made[1])
                noise += [seed] * len(users)
            told = torch.cat(tokens).to(base.dtype)
            if self.guidance > 1:
                length = _common(self.generator)
                blank = base.text([""], sampler.width, sampler.height).tokens.to(base.dtype)
                blank = blank.repeat(1, length // blank.shape[1], 1)
                told = told.repeat(1, length // told.shape[1], 1)
            extra = None if pooled[0] is None else torch.cat([one for one in pooled if one is not None]).to(base.dtype)
            pictures: list[Image.Image] = []
            for part in chunks(len(told), self.batch):
                rows = slice(part.start, part.stop)
                more: dict[str, Any] = {} if extra is None else {"pooled_prompt_embeds": extra[rows]}
                if self.guidance > 1:
                    more["negative_prompt_embeds"] = blank.expand(len(part), -1, -1)
                pictures += base.pipeline(
                    prompt_embeds=told[rows],
                    height=sampler.height,
                    width=sampler.width,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance,
                    generator=[torch.Generator().manual_seed(seed) for seed in noise[rows]],
                    **more,
                ).images
                calls += len(part) * self.steps * (2 if self.guidance > 1 else 1)
            n = len(users)
            return Drawn([pictures[k * n : (k + 1) * n] for k in range(len(items))], calls, seconds())


def _common(generator: CoverGenerator) -> int:
    sampler = generator.sampler
    blank = generator.base.text([""], sampler.width, sampler.height).tokens
    return math.lcm(blank.shape[1], generator.adapter.config.length)
