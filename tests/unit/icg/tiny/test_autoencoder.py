from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from icg.tiny.autoencoder import (
    AutoencoderConfig,
    augment,
    build,
    encode,
    fold,
    loss,
    pixel_weights,
    recolour,
    round_trip,
    train,
)
from icg.tiny.data import Pictures
from icg.tiny.pixels import psnr, to_pixels, to_tensor
from icg.training import Run

TINY = AutoencoderConfig(channels=(8, 8, 16, 16), norm_groups=4)


@pytest.fixture
def model() -> AutoencoderKL:
    torch.manual_seed(0)
    return build(TINY).eval()


def test_every_parameter_gets_a_gradient(model: AutoencoderKL, pictures: Pictures) -> None:
    images = to_tensor(pictures.pixels[:4])
    loss(model, images, torch.randn(4, TINY.latent_channels, 8, 8), TINY).backward()
    assert not [name for name, tensor in model.named_parameters() if not tensor.grad.abs().sum() > 0]


def test_folding_gives_standard_latents_and_the_same_pictures(model: AutoencoderKL, pictures: Pictures) -> None:
    pixels = torch.from_numpy(pictures.pixels)
    before, deviation_before = encode(model, pixels, "cpu"), _deviation(model, pixels)
    drawn = round_trip(model, pixels, "cpu")
    fold(model, before)
    after = encode(model, pixels, "cpu")

    torch.testing.assert_close(after.mean(dim=(0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std(dim=(0, 2, 3)), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(round_trip(model, pixels, "cpu"), drawn, atol=1e-4, rtol=0)
    # The posterior's own noise shrinks or grows with its mean.
    scale = before.std(dim=(0, 2, 3))[None, :, None, None]
    torch.testing.assert_close(_deviation(model, pixels) * scale, deviation_before, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def _deviation(model: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    deviation: torch.Tensor = model.encode(to_tensor(pixels)).latent_dist.std
    return deviation


def test_empty_background_weighs_less_than_what_is_drawn(pictures: Pictures) -> None:
    weights = pixel_weights(to_tensor(pictures.pixels[:1]), background=0.3)
    assert weights[0, 0, 0, 0] == pytest.approx(0.3)
    assert weights[0, 0, 32, 32] == 1
    drawn = to_tensor(pictures.pixels[:1]).amin(dim=1) < 0.97
    assert drawn.sum() < (weights == 1).sum() < 2 * drawn.sum()  # a rim of two pixels round the drawing counts too


def test_augmented_pictures_are_shifted_or_mirrored_on_white(pictures: Pictures) -> None:
    image = to_tensor(pictures.pixels[:1])
    many = augment(image.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0))
    assert many.shape == (200, 3, 64, 64)
    assert len({one.numpy().tobytes() for one in many}) > 50
    # Nothing drawn is lost: the drawing is further than 3 pixels from the border.
    torch.testing.assert_close(many.sum(dim=(1, 2, 3)), image.sum().expand(200), rtol=1e-4, atol=0.5)


def test_recolouring_permutes_the_channels_of_a_share_of_the_pictures(pictures: Pictures) -> None:
    images = to_tensor(pictures.pixels[:1]).repeat(300, 1, 1, 1)
    changed = recolour(images, 0.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(changed.sort(dim=1).values, images.sort(dim=1).values, atol=0, rtol=0)
    assert len({one.numpy().tobytes() for one in changed}) == 3  # pure red can become green or blue
    same = (changed == images).flatten(1).all(dim=1).float().mean()
    assert 0.5 < same < 0.8  # half are left alone and a third of the others keep their red
    assert torch.equal(recolour(images, 0.0, torch.Generator().manual_seed(0)), images)


def test_training_improves_the_round_trip_and_goes_on_where_it_stopped(pictures: Pictures, tmp_path: Path) -> None:
    run = Run(folder=tmp_path / "whole", steps=24, batch=8, rate=3e-3, warmup=2, cooldown=8, ema=0.8)
    pixels = torch.from_numpy(pictures.pixels)
    torch.manual_seed(0)
    untrained = psnr(round_trip(build(TINY).eval(), pixels, "cpu"), to_tensor(pixels)).mean()

    whole = train(TINY, run, pictures, pictures)
    trained = psnr(round_trip(whole, pixels, "cpu"), to_tensor(pixels)).mean()
    assert trained > untrained + 3

    first = replace(run, folder=tmp_path / "parts", steps=24, cooldown=8)
    _stopped_after(10, first, pictures)
    resumed = train(TINY, first, pictures, pictures)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name

    saved = AutoencoderKL.from_pretrained(run.folder / "model", local_files_only=True)
    torch.testing.assert_close(encode(saved, pixels, "cpu"), encode(whole, pixels, "cpu"))


def _stopped_after(steps: int, run: Run, pictures: Pictures) -> None:
    """Train a few steps of the same schedule: up to there the rate does not know how many will follow."""
    train(TINY, replace(run, steps=steps, cooldown=0), pictures, pictures)


def test_pixels_survive_the_way_to_tensors_and_back(pictures: Pictures) -> None:
    assert (to_pixels(to_tensor(pictures.pixels)) == pictures.pixels).all()


def test_psnr_of_a_known_error() -> None:
    white = torch.ones(1, 3, 4, 4)
    assert psnr(white - 0.2, white).item() == pytest.approx(20.0, abs=1e-3)  # a tenth of the range
