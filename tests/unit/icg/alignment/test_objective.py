from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from icg.alignment.objective import Objective
from icg.alignment.people import People, Taste
from icg.alignment.watch import histogram_distance
from icg.rewards import Judge
from icg.rewards.preference import PreferenceModel


def images(count: int) -> torch.Tensor:
    return (torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255).round() / 255


def test_it_rewards_what_the_sidecars_report(objective: Objective, tiny: Path) -> None:
    some = images(2)
    values = objective.rewards(some, torch.tensor([0, 1]), ["a disc", "a box"])
    judge = Judge.from_parts(tiny / "rewards", tiny / "space", tiny / "preference")
    pictures = [Image.fromarray((one * 255).round().byte().permute(1, 2, 0).numpy()) for one in some]
    scores = [row["relevance"] for row in judge.score(pictures, ["a disc", "a box"])]
    torch.testing.assert_close(values[:, 1], torch.tensor(scores), atol=1e-5, rtol=0)


def test_rewards_are_bounded_and_of_one_unit(objective: Objective) -> None:
    raw = torch.randn(500, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.01, 7.0]) + 3
    objective.begin(raw)
    standard = objective.standard(raw)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(2), atol=1e-2, rtol=0)
    torch.testing.assert_close(standard.std(dim=0), torch.ones(2), atol=1e-2, rtol=0)
    most = sum(objective.weights.values())
    assert objective(raw * 1e6).abs().max().item() <= most + 1e-6
    assert objective(raw.max(dim=0, keepdim=True).values) > objective(raw.min(dim=0, keepdim=True).values)


def test_the_statistics_follow(objective: Objective) -> None:
    objective.begin(torch.zeros(4, 2))
    for _ in range(1000):
        objective.remember(
            {name: value.item() for name, value in objective.moments(torch.tensor([[2.0, 5.0]])).items()}
        )
    torch.testing.assert_close(objective.mean, torch.tensor([2.0, 5.0]), atol=1e-3, rtol=0)


def test_a_gradient_reaches_the_picture(objective: Objective) -> None:
    some = images(2).requires_grad_()
    objective(objective.rewards(some, torch.tensor([0, 1]), ["a disc", "a box"])).sum().backward()
    assert some.grad is not None
    assert some.grad.abs().sum() > 0


def test_another_person_thinks_otherwise(taste_model: PreferenceModel, people: People) -> None:
    taste, some = Taste(taste_model, people), images(3)
    mine, theirs = (taste(some, torch.full((3,), person)) for person in (0, 1))
    assert not torch.allclose(mine, theirs)


def test_colours_of_equal_pictures_do_not_differ_and_of_black_and_white_wholly() -> None:
    some = images(4)
    assert histogram_distance(some, some) == 0
    assert histogram_distance(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)) == pytest.approx(1)
    half = np.zeros((1, 3, 8, 8), np.float32)
    half[..., :4] = 1
    assert histogram_distance(torch.from_numpy(half), torch.ones(1, 3, 8, 8)) == pytest.approx(0.5)
