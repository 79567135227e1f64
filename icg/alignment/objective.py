"""Many rewards as one: each bounded, each in units of its own running deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from icg.alignment.cache import Cache
from icg.alignment.people import Taste
from icg.rewards.aesthetic import Aesthetic
from icg.rewards.relevance import Relevance


@dataclass(frozen=True)
class Weights:
    """Of each reward in the sum."""

    preference: float = 1.0  # the personal reward
    relevance: float = 0.15  # at 0.5, on icg-tiny, its noise drowned the personal reward: the gain fell after 200 steps
    aesthetic: float = 0.1
    memory: float = 0.99  # decay of the running statistics, a step


class Objective(nn.Module):
    """Σ weight · tanh((r − mean) / deviation), with running statistics of each r.

    The bound keeps one reward from being bought at any price of the others, and ends its pull on a cover that has all
    there is to have; the statistics make the weights mean the same for rewards of any unit.

    Attributes:
        names: of the rewards, as in the logs.
    """

    mean: Tensor
    square: Tensor

    def __init__(self, taste: Taste, relevance: Relevance, aesthetic: Aesthetic | None, weights: Weights) -> None:
        super().__init__()
        self.taste = taste
        self.relevance = relevance
        self.aesthetic = aesthetic
        self.memory = weights.memory
        self.weights = {"preference": weights.preference, "relevance": weights.relevance}
        if aesthetic is not None:
            self.weights["aesthetic"] = weights.aesthetic
        self.names = tuple(self.weights)
        self.register_buffer("mean", torch.zeros(len(self.names)))
        self.register_buffer("square", torch.ones(len(self.names)))
        self._titles: Cache[str] = Cache(self._read)
        self.requires_grad_(False)

    def rewards(self, images: Tensor, users: Tensor, titles: Sequence[str]) -> Tensor:
        """[n, rewards] of pictures [n, 3, height, width] in [0, 1], for numbers of people [n]."""
        # In full precision also where a trainer's autocast is on: pictures of one item differ by little.
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            told = torch.cat([kept["title"] for kept in self._titles(titles)])
            columns = [self.taste(images, users), (self.relevance.images(images) * told).sum(-1)]
            if self.aesthetic is not None:
                columns.append(self.aesthetic(images))
            return torch.stack(columns, dim=1)

    def standard(self, rewards: Tensor) -> Tensor:
        """Rewards [n, rewards] in running deviations from their running means."""
        deviation = (self.square - self.mean.square()).clamp_min(1e-8).sqrt()
        return (rewards - self.mean) / deviation

    def forward(self, rewards: Tensor) -> Tensor:
        """The sum, [n]."""
        weights = rewards.new_tensor(list(self.weights.values()))
        return torch.tanh(self.standard(rewards)) @ weights

    @torch.no_grad()
    def begin(self, rewards: Tensor) -> None:
        """Statistics of covers [n, rewards] as they are before the first step."""
        self.mean.copy_(rewards.mean(dim=0))
        self.square.copy_(rewards.square().mean(dim=0))

    @torch.no_grad()
    def remember(self, figures: Mapping[str, float]) -> None:
        """Move the statistics by a step's `moments`."""
        for place, name in enumerate(self.names):
            self.mean[place].lerp_(torch.tensor(figures[name]).to(self.mean), 1 - self.memory)
            self.square[place].lerp_(torch.tensor(figures[f"{name}_square"]).to(self.mean), 1 - self.memory)

    def moments(self, rewards: Tensor) -> dict[str, Tensor]:
        """Mean and mean square of each reward, by name."""
        means = dict(zip(self.names, rewards.mean(dim=0), strict=True))
        squares = zip(self.names, rewards.square().mean(dim=0), strict=True)
        return {**means, **{f"{name}_square": value for name, value in squares}}

    @torch.no_grad()
    def _read(self, titles: Sequence[str]) -> list[dict[str, Tensor]]:
        return [{"title": self.relevance.titles([title])} for title in titles]
