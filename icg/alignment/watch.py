"""What a stage's covers are worth on the way, by what trains them and by a judge that trains nothing.

A reward that is climbed is soon climbed for its own sake. So beside the gain in reward stand the gain by a preference
model that the training never sees, what the two differ by, how far the covers' colours have gone from real pictures',
and how alike the covers of one person have become.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from icg.alignment.material import Asked, Material, evenly
from icg.alignment.objective import Objective
from icg.alignment.people import People, Taste
from icg.alignment.student import Student
from icg.generator import CoverGenerator
from icg.quality import quality
from icg.rewards.vision import pixels
from icg.tiny.pixels import save_sheet

BINS = 4
"""Of each colour channel in the histograms: 64 colours, told apart by eye."""


RESAMPLES = 1000
LEVEL = 0.95
"""Of the one-sided interval of `Comparison.worst`."""


@dataclass(frozen=True)
class Comparison:
    """One adapter against another on the same items, people and noise, by what trained neither.

    Attributes:
        gain: how much better the judge finds the other's personal covers, in deviations over the first's.
        worst: lower end of its one-sided 95 % interval, by bootstrap over items x people.
        wins: share of covers that the judge finds better, ties half.
        drawn: share of the other's covers that are pictures at all (`icg.quality`), and
        drawn_before: of the first's.
    """

    gain: float
    worst: float
    wins: float
    drawn: float
    drawn_before: float

    def __str__(self) -> str:
        return (
            f"judge {self.gain:+.3f} deviations (at least {self.worst:+.3f}), {self.wins:.0%} of covers better, "
            f"{self.drawn:.0%} pass the gate ({self.drawn_before:.0%} before)"
        )


@dataclass(frozen=True)
class WatchConfig:
    items: int = 12  # of validation
    users: int = 8
    real: int = 256  # pictures of validation whose colours covers should have


class Watch:
    """Fixed items of validation, fixed people, fixed seeds.

    Args:
        judge: a preference model that trains nothing, of another space; None: only the rewards are reported.
        people: whose whole vectors the covers are drawn for.
    """

    def __init__(
        self,
        material: Material,
        objective: Objective,
        judge: Taste | None,
        people: People,
        config: WatchConfig | None = None,
    ) -> None:
        config = config or WatchConfig()
        self.material, self.objective, self.judge = material, objective, judge
        self.rows = evenly(material.rows_with_reference(), config.items)
        self.users = evenly(range(len(people)), config.users)
        self.vectors = people.whole[self.users]
        some = evenly(range(len(material.catalogue)), config.real)
        self.real = pixels([material.pixels(row) for row in some])

    def observer(self, folder: Path) -> Callable[[Student, int], dict[str, float]]:
        """For a stage's task: the figures, and a sheet in its folder, a row an item, the neutral cover first."""

        def observe(model: Student, step: int) -> dict[str, float]:
            neutral, personal = self.draw(model)
            rows = [np.asarray(image) for one, own in zip(neutral, personal, strict=True) for image in [one, *own]]
            save_sheet(np.stack(rows), 1 + len(self.users), folder / f"sheet-{step:06d}.png")
            return self.figures(neutral, personal)

        return observe

    def draw(self, model: Student) -> tuple[list[Image.Image], list[list[Image.Image]]]:
        """Neutral covers, one an item, and personal ones, [items][users]; the items as platforms publish them."""
        stack = self.material.stack
        generator = CoverGenerator(stack.base, model.mllm, model.adapter, stack.sampler)
        neutral, personal = [], []
        for place, row in enumerate(self.rows):
            references = self.material.catalogue.references[row]
            # Every other item brings its picture.
            shown = int(references[0]) if len(references) and place % 2 else None
            context = generator.encode([self.material.item(Asked(self.material.catalogue.titles[row], shown))])
            drawn = generator.generate(context, [[None, *self.vectors]], [place])[0]
            neutral.append(drawn[0])
            personal.append(drawn[1:])
        return neutral, personal

    @torch.no_grad()
    def compare(self, before: Student, after: Student) -> Comparison:
        """What the judge and the quality gate say of the covers of one adapter against another's.

        Raises:
            ValueError: there is no judge.
        """
        if self.judge is None:
            raise ValueError("there is nothing to compare by: name a judge")
        device = self.objective.mean.device
        drawn = [self.draw(model)[1] for model in (before, after)]
        users = torch.tensor(self.users, device=device).repeat(len(self.rows))
        scores = [
            self.judge(pixels([image for row in covers for image in row]).to(device), users)
            .cpu()
            .double()
            .reshape(len(self.rows), len(self.users))
            for covers in drawn
        ]
        steps = ((scores[1] - scores[0]) / scores[0].std().clamp_min(1e-6)).numpy()
        passed = [float(np.mean([quality(image) >= 0.5 for row in covers for image in row])) for covers in drawn]
        return Comparison(
            gain=float(steps.mean()),
            worst=_worst(steps),
            wins=float(((steps > 0) + (steps == 0) / 2).mean()),
            drawn=passed[1],
            drawn_before=passed[0],
        )

    @torch.no_grad()
    def figures(self, neutral: list[Image.Image], personal: list[list[Image.Image]]) -> dict[str, float]:
        """Gains are of own over neutral covers, in deviations over the neutral ones; wins a share, ties half."""
        device = self.objective.mean.device
        count = len(self.users)
        own = pixels([image for row in personal for image in row]).to(device)
        plain = pixels(neutral).to(device).repeat_interleave(count, dim=0)
        users = torch.tensor(self.users, device=device).repeat(len(neutral))
        titles = [self.material.catalogue.titles[row] for row in self.rows for _ in self.users]
        found = {}
        tastes = (
            {"reward": self.objective.taste}
            if self.judge is None
            else {"reward": self.objective.taste, "judge": self.judge}
        )
        for name, taste in tastes.items():
            mine, theirs = taste(own, users), taste(plain, users)
            found[f"{name}_gain"] = ((mine - theirs).mean() / theirs.std().clamp_min(1e-6)).item()
            found[f"{name}_wins"] = ((mine > theirs).float() + (mine == theirs).float() / 2).mean().item()
        if self.judge is not None:
            found["reward_minus_judge"] = found["reward_gain"] - found["judge_gain"]
        rewards = {"own": self.objective.rewards(own, users, titles)}
        rewards["neutral"] = self.objective.rewards(plain, users, titles)
        for whose, values in rewards.items():
            for name, value in zip(self.objective.names[1:], values.mean(dim=0)[1:].tolist(), strict=True):
                found[f"{name}_{whose}"] = value
        found["colours_own"] = histogram_distance(own, self.real)
        found["colours_neutral"] = histogram_distance(plain[::count], self.real)
        seen = self.objective.relevance.images(own).unflatten(0, (len(neutral), count))
        found["diversity_within_user"] = _spread(seen.transpose(0, 1))
        found["diversity_between_users"] = _spread(seen)
        return found


def _worst(steps: NDArray[np.float64]) -> float:
    """Lower end of the mean of [items, people], both resampled."""
    rng = np.random.default_rng(0)
    items, people = (rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count for count in steps.shape)
    means = np.einsum("ri,ip,rp->r", items, steps, people, optimize=True)
    return float(np.quantile(means, 1 - LEVEL))


def histogram_distance(images: Tensor, real: Tensor) -> float:
    """Total variation, 0 to 1, between the colours of two sets of pictures [n, 3, height, width] in [0, 1]."""
    return (_histogram(images) - _histogram(real)).abs().sum().item() / 2


def _histogram(images: Tensor) -> Tensor:
    levels = (images.detach().cpu() * BINS).long().clamp(0, BINS - 1)
    colours = (levels[:, 0] * BINS + levels[:, 1]) * BINS + levels[:, 2]
    return torch.bincount(colours.flatten(), minlength=BINS**3).double() / colours.numel()


def _spread(features: Tensor) -> float:
    """Mean of 1 − cosine over pairs within each group of unit vectors [groups, n, d]."""
    n = features.shape[1]
    if n < 2:
        return 0.0
    cosines = features @ features.transpose(1, 2)
    between = (cosines.sum(dim=(1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (n * (n - 1))
    return float(1 - between.mean())
