from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from icg.tiny import text
from icg.tiny.autoencoder import AutoencoderConfig, encode, fold
from icg.tiny.autoencoder import build as build_autoencoder
from icg.tiny.base import BaseConfig, build_pipeline, build_scheduler, build_unet, draw, loss, noised, train
from icg.tiny.caption_states import CaptionStates
from icg.tiny.data import Pictures
from icg.training import Run

TINY = BaseConfig(channels=(32, 32), sheet_titles=1, sheet_steps=2)


@pytest.fixture
def autoencoder(pictures: Pictures) -> AutoencoderKL:
    """Untrained, but with standard latents."""
    torch.manual_seed(0)
    model = build_autoencoder(AutoencoderConfig(channels=(8, 8, 8, 8), norm_groups=4)).eval()
    fold(model, encode(model, torch.from_numpy(pictures.pixels), "cpu"))
    return model


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    unet = build_unet(TINY)
    latents, states = torch.randn(4, 16, 8, 8), torch.randn(4, 24, text.WIDTH)
    scheduler = build_scheduler()
    loss(unet, scheduler, noised(latents, states, scheduler, torch.Generator().manual_seed(0))).backward()
    assert not [name for name, tensor in unet.named_parameters() if not tensor.grad.abs().sum() > 0]


def test_the_last_time_is_pure_noise_and_its_target_the_negative_picture() -> None:
    scheduler, picture, noise = build_scheduler(), torch.randn(1, 16, 8, 8), torch.randn(1, 16, 8, 8)
    last = torch.tensor([999])
    torch.testing.assert_close(scheduler.add_noise(picture, noise, last), noise)
    torch.testing.assert_close(scheduler.get_velocity(picture, noise, last), -picture)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999  # sampling begins where there is only noise


def test_training_lowers_the_loss_and_writes_a_sheet(
    autoencoder: AutoencoderKL, pictures: Pictures, captions: CaptionStates, tmp_path: Path
) -> None:
    run = Run(folder=tmp_path, steps=30, batch=8, rate=3e-3, warmup=2, cooldown=10, ema=0.8)
    unet = train(TINY, run, autoencoder, pictures, pictures, captions)

    latents = encode(autoencoder, torch.from_numpy(pictures.pixels), "cpu").repeat(4, 1, 1, 1)
    states = captions.plain[captions.title, 0].float().repeat(4, 1, 1)
    torch.manual_seed(run.seed)
    untrained = build_unet(TINY)
    scheduler = build_scheduler()
    batch = noised(latents, states, scheduler, torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = (loss(model, scheduler, batch).item() for model in (untrained, unet))
    assert after < 0.9 * before
    assert (tmp_path / "sheet-000030.png").exists()
    assert len((tmp_path / "titles.txt").read_text().splitlines()) == 2


def test_a_checkpoint_on_other_latents_is_refused(
    autoencoder: AutoencoderKL, pictures: Pictures, captions: CaptionStates, tmp_path: Path
) -> None:
    run = Run(folder=tmp_path, steps=1, batch=8, rate=1e-3)
    train(TINY, run, autoencoder, pictures, pictures, captions, signature="one autoencoder")
    with pytest.raises(ValueError, match="another autoencoder"):
        train(TINY, run, autoencoder, pictures, pictures, captions, signature="another autoencoder")


def test_a_drawing_depends_on_seed_and_title_and_on_nothing_else(autoencoder: AutoencoderKL) -> None:
    torch.manual_seed(0)
    pipeline = build_pipeline(build_unet(TINY), autoencoder, text.encoder())
    one = draw(pipeline, ["red apple", "blue car"], seed=0, guidance=3.0, steps=3)
    assert one.shape == (2, 3, 64, 64)
    assert one.min() >= -1
    assert one.max() <= 1
    assert torch.equal(one, draw(pipeline, ["red apple", "blue car"], seed=0, guidance=3.0, steps=3))
    other_title = draw(pipeline, ["red apple", "green tree"], seed=0, guidance=3.0, steps=3)
    assert torch.equal(one[0], other_title[0])
    assert not torch.equal(one[1], other_title[1])
    assert not torch.equal(one, draw(pipeline, ["red apple", "blue car"], seed=5, guidance=3.0, steps=3))
