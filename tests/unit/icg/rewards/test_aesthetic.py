from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from icg.exceptions import BadWeights
from icg.rewards.aesthetic import Aesthetic, read_head


def layers(*widths: int) -> dict[str, torch.Tensor]:
    """Tensors of a head in the public predictor's layout: dropout takes every other number."""
    torch.manual_seed(0)
    state = {}
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        linear = nn.Linear(inputs, outputs)
        state |= {f"layers.{2 * number}.weight": linear.weight.data, f"layers.{2 * number}.bias": linear.bias.data}
    return state


def test_the_public_predictors_layout():
    # Every second number is a dropout, and two linear layers at the end have none between them.
    state = layers(768, 1024, 128, 64, 16)
    state |= {"layers.7.weight": torch.randn(1, 16), "layers.7.bias": torch.zeros(1)}
    head = read_head(state)
    features = functional.normalize(torch.randn(3, 768), dim=-1)
    expected = features
    for number in (0, 2, 4, 6, 7):
        expected = functional.linear(expected, state[f"layers.{number}.weight"], state[f"layers.{number}.bias"])
    torch.testing.assert_close(head(features), expected)


def test_layers_are_ordered_by_number_and_not_by_name():
    state = {f"layers.{number}.weight": torch.randn(2, 2) for number in (2, 10)}
    state |= {f"layers.{number}.bias": torch.zeros(2) for number in (2, 10)}
    state |= {"layers.11.weight": torch.randn(1, 2), "layers.11.bias": torch.zeros(1)}
    assert torch.equal(read_head(state)[1].weight, state["layers.10.weight"])


def test_the_linear_predictor():
    state = {"weight": torch.randn(1, 768), "bias": torch.zeros(1)}
    assert torch.equal(read_head(state)[0].weight, state["weight"])


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (layers(8, 4, 2), "does not end in one score"),
        (layers(8, 4) | {"layers.2.weight": torch.zeros(1, 5), "layers.2.bias": torch.zeros(1)}, r"\(1, 5\) after 4"),
        ({"weight": torch.full((1, 8), torch.nan), "bias": torch.zeros(1)}, "holds NaN"),
        ({}, "does not end in one score"),
    ],
)
def test_a_bad_head_is_refused(state, reason):
    with pytest.raises(BadWeights, match=reason):
        read_head(state)


def test_saved_and_loaded_scores_the_same(tiny, tmp_path):
    reward = Aesthetic.from_pretrained(tiny / "rewards" / "aesthetic")
    reward.save_pretrained(tmp_path, tiny / "space")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Aesthetic.from_pretrained(tmp_path)(images), reward(images))


def test_a_picture_gets_a_gradient(tiny):
    reward = Aesthetic.from_pretrained(tiny / "rewards" / "aesthetic")
    images = torch.rand(2, 3, 80, 96, requires_grad=True)
    reward(images).sum().backward()
    assert images.grad is not None
    assert images.grad.any()


def test_a_head_of_other_features_is_refused(tiny, tmp_path):
    reward = Aesthetic.from_pretrained(tiny / "rewards" / "aesthetic")
    reward.save_pretrained(tmp_path, tiny / "space")
    assert load_file(tmp_path / "head.safetensors")["layers.0.weight"].shape[1] == 64
    save_file({"weight": torch.zeros(1, 63), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(BadWeights, match="takes 63 features, its encoder gives 64"):
        Aesthetic.from_pretrained(tmp_path)
