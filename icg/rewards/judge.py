"""All rewards of a cover at once, as the worker writes them into its sidecar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from icg.exceptions import BadWeights
from icg.preference import Head
from icg.rewards.aesthetic import Aesthetic
from icg.rewards.preference import CoverEncoder
from icg.rewards.relevance import Relevance
from icg.rewards.vision import SLOTS, pixels
from icg.slots import in_slots


class Judge:
    """The parts `rewards`, `space` and `preference`. Encoder calls have 8 slots: a score does not depend on company."""

    def __init__(self, aesthetic: Aesthetic | None, relevance: Relevance, encoder: CoverEncoder, head: Head) -> None:
        if encoder.dimension != head.dimension:
            raise BadWeights(f"the space has dimension {encoder.dimension}, the preference head {head.dimension}")
        self.aesthetic = aesthetic
        self.relevance = relevance
        self.encoder = encoder
        self.head = head
        self.device = "cpu"

    @classmethod
    def from_parts(cls, rewards: Path, space: Path, preference: Path, *, device: str = "cpu") -> Self:
        """Load from `rewards/relevance`, `rewards/aesthetic` (may be absent), the space and the preference head."""
        folder = Path(rewards)
        aesthetic = Aesthetic.from_pretrained(folder / "aesthetic") if (folder / "aesthetic").is_dir() else None
        relevance = Relevance.from_pretrained(folder / "relevance")
        judge = cls(aesthetic, relevance, CoverEncoder.from_pretrained(space), Head.load(preference))
        for model in (judge.aesthetic, judge.relevance, judge.encoder):
            if model is not None:
                model.to(device)
        judge.device = device
        return judge

    def load_preference(self, directory: str | Path) -> None:
        """Take another head of the same space; on BadWeights the old one stays."""
        head = Head.load(directory)
        if head.space != self.head.space or head.dimension != self.encoder.dimension:
            raise BadWeights(f"the preference head is of space {head.space[:12]}, not {self.head.space[:12]}")
        self.head = head

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], titles: Sequence[str | None]) -> list[dict[str, float]]:
        """Rewards of each picture: `aesthetic`, and `relevance` where there is a title to be relevant to."""
        if len(images) != len(titles):
            raise ValueError(f"{len(images)} images and {len(titles)} titles")
        if not images:
            return []
        tensor = pixels(images).to(self.device)
        scores: list[dict[str, float]] = [{} for _ in images]
        if self.aesthetic is not None:
            for row, value in zip(scores, in_slots(self.aesthetic, SLOTS, tensor).tolist(), strict=True):
                row["aesthetic"] = value
        seen = in_slots(self.relevance.images, SLOTS, tensor)
        # A title is read once and alone: nine covers of an item share it, and no neighbour changes its vector.
        read = {title: self.relevance.titles([title])[0] for title in {*titles} if title}
        for row, vector, title in zip(scores, seen, titles, strict=True):
            if title:
                row["relevance"] = float(vector @ read[title])
        return scores

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Preference embeddings [n, d] in the space, of length 1."""
        if not images:
            return np.zeros((0, self.encoder.dimension), np.float32)
        vectors = in_slots(self.encoder, SLOTS, pixels(images).to(self.device))
        return np.asarray(vectors.cpu().numpy(), np.float32)

    def prefer(self, vectors: ArrayLike, embeddings: ArrayLike) -> NDArray[np.float32]:
        """What each user [m, d] thinks of each cover [n, d]: [m, n]."""
        users = np.asarray(vectors, np.float32)
        return self.head.score(users[:, None], np.asarray(embeddings, np.float32)[None])
