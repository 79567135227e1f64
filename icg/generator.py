"""`CoverGenerator`: load the parts, encode items, draw covers. The façade that workers use."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from icg.adapter import Adapter
from icg.conditioning import Base, Conditioning, load_base
from icg.exceptions import BadWeights
from icg.item import Item
from icg.mllm import MLLM, letterbox
from icg.sampling import SamplerConfig, decode, draw_latents, get_scheduler, is_number
from icg.slots import in_slots
from icg.tuned import save_tuned, tuned

Vector = NDArray[np.float32]

CACHED = 64
"""Items whose features are kept: a publish is soon followed by refreshes. 64 of Qwen2.5-VL-7B's are 59 MB."""


@dataclass(frozen=True)
class Context:
    """What an adapter's meta tokens read of some items; the same for every user."""

    features: Tensor  # [items, N, features of the MLLM], float32
    adapter: object  # the adapter whose meta tokens they are

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice) -> Context:
        return Context(self.features[rows], self.adapter)


class CoverGenerator:
    """Draws covers of items for user vectors.

    Attributes:
        sampler: how covers are drawn.
        space: revision of the space in which user vectors mean something to the adapter.
        dimension: of a user vector.
    """

    def __init__(self, base: Base, mllm: MLLM, adapter: Adapter, sampler: SamplerConfig | None = None) -> None:
        self.base = base
        self.mllm = mllm
        self.sampler = sampler or SamplerConfig()
        self._check(self.sampler)
        self.adapter = self._fitting(adapter)
        self._read: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, device: str = "cpu", sampler: SamplerConfig | None = None
    ) -> Self:
        """Load `base/`, `mllm/` and `adapter/` of a folder.

        Args:
            sampler: as the adapter says by default, see `icg.tuned`.

        Raises:
            BadWeights: if the adapter must not be used.
            Unsupported: if no family drives the base.
        """
        folder = Path(directory)
        return cls.from_parts(folder / "base", folder / "mllm", folder / "adapter", device=device, sampler=sampler)

    @classmethod
    def from_parts(
        cls, base: Path, mllm: Path, adapter: Path, *, device: str = "cpu", sampler: SamplerConfig | None = None
    ) -> Self:
        """Load from three folders, such as the cached parts of a release."""
        for name, folder in (("base", base), ("mllm", mllm), ("adapter", adapter)):
            if not Path(folder).is_dir():
                raise BadWeights(f"there is no {name} at {folder}")
        sampler = sampler or tuned(adapter)
        return cls(
            load_base(base, device, sampler.torch_dtype),
            MLLM.from_pretrained(mllm, device, sampler.torch_dtype),
            Adapter.from_pretrained(adapter),
            sampler,
        )

    @property
    def space(self) -> str:
        return self.adapter.config.space

    @property
    def dimension(self) -> int:
        return self.adapter.config.dimension

    def load_adapter(self, directory: str | Path, sampler: SamplerConfig | None = None) -> None:
        """Take another adapter for the same base and MLLM; on BadWeights the old one stays.

        Args:
            sampler: how it wants to be drawn; None: as before. Not another dtype.
        """
        if sampler is not None:
            self._check(sampler)
        self.adapter = self._fitting(Adapter.from_pretrained(directory))
        self.sampler = sampler or self.sampler
        self._read.clear()

    def save_pretrained(self, directory: str | Path) -> None:
        folder = Path(directory)
        self.base.pipeline.save_pretrained(folder / "base", safe_serialization=True)
        self.mllm.save_pretrained(folder / "mllm")
        self.adapter.save_pretrained(folder / "adapter")
        save_tuned(folder / "adapter", self.sampler)

    def _check(self, sampler: SamplerConfig) -> None:
        """ValueError at once for a size, a scheduler or a number of steps that the base does not have."""
        shape = self.base.latent_shape(sampler.width, sampler.height)
        self.base.set_timesteps(get_scheduler(self.base, sampler.scheduler), sampler.steps, shape)

    def _fitting(self, adapter: Adapter) -> Adapter:
        config = adapter.config
        for name, has, wanted in (
            ("features", config.features, self.mllm.width),
            ("output", config.output, self.base.width),
            ("pooled", config.pooled, self.base.pooled),
        ):
            if has != wanted:
                raise BadWeights(f"the adapter's {name} is {has}, its MLLM and base want {wanted}")
        return adapter.to(self.base.device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> Context:
        """Read items, one at a time, so that what is read depends on no neighbour. Kept for the last 64 items."""
        if not items:
            raise ValueError("no items to encode")
        return Context(torch.stack([self._features(item) for item in items]), self.adapter)

    def _features(self, item: Item) -> Tensor:
        key = self._content(item)
        if key not in self._read:
            config = self.adapter.config
            self._read[key] = self.mllm.read([item], self.adapter.meta, config.prompt, config.context)[0]
            if len(self._read) > CACHED:
                self._read.popitem(last=False)
        self._read.move_to_end(key)
        return self._read[key]

    def _content(self, item: Item) -> str:
        digest = hashlib.sha256(repr(item.title).encode())
        if item.image is not None:
            digest.update(letterbox(item.image, self.mllm.side).tobytes())  # all that the MLLM sees of it
        return digest.hexdigest()

    @torch.inference_mode()
    def generate(
        self, context: Context, vectors: Sequence[Sequence[Vector | None]], seeds: Sequence[int]
    ) -> list[list[Image.Image]]:
        """Draw covers: per item, one for each of its vectors; None is neutral.

        A cover's pixels depend on its item, vector and seed alone, however many are drawn beside it.

        Args:
            context: from `encode`.
            vectors: for each item, vectors of `dimension` finite numbers in `space`.
            seeds: one an item: its covers share their noise.

        Raises:
            ValueError: naming shapes and values.
        """
        if context.adapter is not self.adapter:
            raise ValueError("the context was encoded with another adapter: encode the items again")
        if not len(context) == len(vectors) == len(seeds):
            raise ValueError(f"{len(context)} items, {len(vectors)} lists of vectors and {len(seeds)} seeds")
        for seed in seeds:
            if not is_number(seed, Integral) or not 0 <= seed < 2**63:
                raise ValueError(f"seed {seed!r} is no whole number in [0, 2**63)")
        asked = [(item, vector) for item, row in enumerate(vectors) for vector in row]
        if not asked:
            return [[] for _ in vectors]
        owners = [item for item, _ in asked]
        users = np.stack([self._checked(vector, item) for item, vector in asked])
        present = torch.tensor([vector is not None for _, vector in asked])
        neutral = self._condition(context.features)
        personal = self._condition(context.features[owners], torch.from_numpy(users), present)
        latents = draw_latents(self.base, neutral, personal, owners, [int(seed) for seed in seeds], self.sampler)
        pictures = iter(decode(self.base, latents, self.sampler).numpy())
        return [[Image.fromarray(next(pictures)) for _ in row] for row in vectors]

    def _checked(self, vector: Vector | None, item: int) -> Vector:
        if vector is None:
            return np.zeros(self.dimension, np.float32)
        array = np.asarray(vector, np.float32)
        if array.shape != (self.dimension,):
            raise ValueError(f"a vector of item {item} has shape {array.shape}, {(self.dimension,)} is wanted")
        if not np.isfinite(array).all():
            raise ValueError(f"a vector of item {item} holds NaN or infinity")
        return array

    def _condition(self, features: Tensor, users: Tensor | None = None, present: Tensor | None = None) -> Conditioning:
        """One row of features a picture, in fixed slots."""
        pooled_width = self.adapter.config.pooled

        def call(features: Tensor, users: Tensor | None = None, present: Tensor | None = None) -> Tensor:
            if users is None:
                tokens, pooled = self.adapter(features)
            else:
                tokens, pooled = self.adapter.personalise(features, users, present, self.sampler.personalization)
            flat: Tensor = tokens.flatten(1)
            return flat if pooled is None else torch.cat([flat, pooled], dim=1)

        rows = [features] if users is None or present is None else [features, users, present]
        flat = in_slots(call, self.sampler.slots, *(row.to(self.base.device) for row in rows))
        tokens, pooled = flat.split([flat.shape[1] - pooled_width, pooled_width], dim=1)
        tokens = tokens.unflatten(1, (self.adapter.config.length, self.base.width))
        return self.base.condition(tokens, pooled if pooled_width else None, self.sampler.width, self.sampler.height)
