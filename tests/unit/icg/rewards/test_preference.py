import numpy as np
import pytest
import torch

from icg.exceptions import BadWeights
from icg.preference import Head
from icg.rewards.preference import CoverEncoder, PreferenceModel


@pytest.fixture(scope="module")
def encoder(tiny) -> CoverEncoder:
    return CoverEncoder.from_pretrained(tiny / "space")


@pytest.fixture
def head() -> Head:
    rng = np.random.default_rng(1)
    return Head("5" * 64, rng.standard_normal((64, 64)), rng.standard_normal(64))


def test_torch_and_numpy_agree(encoder, head):
    model = PreferenceModel(encoder, head)
    generator = torch.Generator().manual_seed(2)
    images, users = torch.rand(4, 3, 64, 64, generator=generator), torch.randn(4, 64, generator=generator)
    torch.testing.assert_close(
        model(images, users), torch.from_numpy(head.score(users.numpy(), encoder(images).numpy())), atol=1e-4, rtol=1e-4
    )


def test_torch_and_numpy_have_the_same_gradient(encoder, head):
    generator = torch.Generator().manual_seed(3)
    users, chosen, rejected = torch.randn(3, 5, 64, generator=generator)
    model = PreferenceModel(encoder, head)
    model.weight.requires_grad_()
    model.bias.requires_grad_()
    margins = model.score(users, chosen) - model.score(users, rejected)
    torch.nn.functional.softplus(-margins).mean().backward()
    gradient = head.gradient(users.numpy(), chosen.numpy(), rejected.numpy())
    torch.testing.assert_close(model.weight.grad, torch.from_numpy(gradient.weight), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.bias.grad, torch.from_numpy(gradient.bias), atol=1e-5, rtol=1e-4)


def test_a_picture_gets_a_gradient(encoder, head):
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    PreferenceModel(encoder, head)(images, torch.ones(2, 64)).sum().backward()
    assert images.grad is not None
    assert images.grad.any()


def test_loaded_from_its_two_parts(tiny):
    model = PreferenceModel.from_pretrained(tiny / "space", tiny / "preference")
    assert torch.equal(model.weight, torch.eye(64))
    assert all(not parameter.requires_grad for parameter in model.parameters())


def test_a_head_of_another_dimension_is_refused(encoder):
    with pytest.raises(BadWeights, match="dimension 64, the preference head 8"):
        PreferenceModel(encoder, Head.start("5" * 64, 8))
