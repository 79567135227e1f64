from pathlib import Path

import torch
from diffusers import AutoencoderKL

from icg.tiny.autoencoder import AutoencoderConfig, build, encode, fold, round_trip
from icg.tiny.data import Pictures
from icg.tiny.decoder import DecoderConfig, train
from icg.tiny.pixels import psnr, to_tensor
from icg.training import Run


def test_the_pictures_get_better_and_the_latents_stay(pictures: Pictures, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(AutoencoderConfig(channels=(8, 8, 16, 16), norm_groups=4)).eval()
    pixels = torch.from_numpy(pictures.pixels)
    fold(model, encode(model, pixels, "cpu"))
    latents, before = encode(model, pixels, "cpu"), psnr(round_trip(model, pixels, "cpu"), to_tensor(pixels)).mean()

    run = Run(folder=tmp_path, steps=20, batch=8, rate=3e-3, warmup=2, cooldown=5, ema=0.8)
    train(DecoderConfig(), run, model, pictures, pictures)

    saved = AutoencoderKL.from_pretrained(tmp_path / "model", local_files_only=True)
    assert torch.equal(encode(saved, pixels, "cpu"), latents)
    assert psnr(round_trip(saved, pixels, "cpu"), to_tensor(pixels)).mean() > before + 2
