from pathlib import Path

import torch
from diffusers import AutoencoderKL

from icg.tiny.autoencoder import AutoencoderConfig, build, encode, fold, round_trip
from icg.tiny.data import Pictures
from icg.tiny.decoder import DecoderConfig, saturation_error, texture_error, train
from icg.tiny.pixels import psnr, to_tensor
from icg.training import Run


def test_the_pictures_get_better_and_the_latents_stay(pictures: Pictures, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(AutoencoderConfig(channels=(8, 8, 16, 16), norm_groups=4)).eval()
    pixels = torch.from_numpy(pictures.pixels)
    fold(model, encode(model, pixels, "cpu"))
    latents, before = encode(model, pixels, "cpu"), psnr(round_trip(model, pixels, "cpu"), to_tensor(pixels)).mean()

    run = Run(folder=tmp_path, steps=40, batch=8, rate=3e-3, warmup=2, cooldown=10, ema=0.8)
    train(DecoderConfig(), run, model, pictures, pictures)

    saved = AutoencoderKL.from_pretrained(tmp_path / "model", local_files_only=True)
    assert torch.equal(encode(saved, pixels, "cpu"), latents)
    assert psnr(round_trip(saved, pixels, "cpu"), to_tensor(pixels)).mean() > before + 2


def test_mottled_areas_and_shimmering_lines_weigh_more_than_the_plain_error_says() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((1, 3, 16, 16), -0.2)
    slope = flat + torch.linspace(0, 1, 16)
    noise = 0.04 * torch.randn(1, 1, 16, 16, generator=generator)
    assert texture_error(flat, flat, 0.3) == 0
    # The same noise is a fault where nothing should be, and lost in what should be rough.
    assert texture_error(flat + noise, flat, 0.3) > 3 * texture_error(slope + noise, slope, 0.3)

    tint = 0.03 * torch.randn(1, 3, 16, 16, generator=generator)
    black, bright = torch.full((1, 3, 16, 16), -0.9), torch.full((1, 3, 16, 16), 0.8)
    assert saturation_error(black, black) == 0
    assert saturation_error(black + tint, black) > 5 * saturation_error(bright + tint, bright)
