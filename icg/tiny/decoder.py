"""Stage 1b: go on with the autoencoder's decoder while its latents stay as they are.

The base learns latents, not pictures, so a better decoder can be had at any time without training the base again.
Here it also meets what a base gives it: latents that are a little off. And it is held to what the plain error hardly
sees and people do: that a flat area is flat, not faintly mottled, and that black is black, not nearly so in some hue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from icg.tiny.autoencoder import encode, picture_error, pixel_weights, round_trip
from icg.tiny.data import Pictures, load
from icg.tiny.files import CACHE, fingerprint
from icg.tiny.pixels import psnr, save_sheet, to_pixels, to_tensor
from icg.tiny.stage import stage_parser
from icg.training import Batch, Run, Task, fit


@dataclass(frozen=True)
class DecoderConfig:
    """What the decoder is trained on."""

    noise: float = 0.1  # greatest deviation of the noise on latents of deviation 1
    background: float = 0.3  # as in stage 1
    edges: float = 0.5  # as in stage 1
    colour: float = 1.0  # as in stage 1
    texture: float = 0.1  # weight of `texture_error`
    saturation: float = 0.5  # weight of `saturation_error`


def train(
    config: DecoderConfig,
    run: Run,
    autoencoder: AutoencoderKL,
    pictures: Pictures,
    held_out: Pictures,
    signature: str = "",
) -> AutoencoderKL:
    """Train the decoder of a folded autoencoder to `run.steps`; also written to `folder/model`.

    `signature` names the autoencoder, so that no checkpoint goes on with other latents.
    """
    autoencoder.requires_grad_(False)
    autoencoder.decoder.requires_grad_(True)
    autoencoder.post_quant_conv.requires_grad_(True)
    autoencoder.to(run.device)
    pixels, judged = torch.from_numpy(pictures.pixels), torch.from_numpy(held_out.pixels)
    mirrored = pixels.flip(2)
    # Twice the pictures: the mirror image of a picture has latents of its own.
    images = torch.cat([pixels, mirrored])
    latents = torch.cat([encode(autoencoder, pixels, run.device), encode(autoencoder, mirrored, run.device)])

    def draw(generator: torch.Generator) -> Batch:
        rows = torch.randint(0, len(images), (run.batch,), generator=generator)
        deviation = config.noise * torch.rand(run.batch, 1, 1, 1, generator=generator)
        off = latents[rows] + deviation * torch.randn(latents[rows].shape, generator=generator)
        return {"latents": off, "images": to_tensor(images[rows])}

    def step_loss(model: AutoencoderKL, batch: Batch) -> dict[str, Tensor]:
        decoded, images = model.decode(batch["latents"]).sample, batch["images"]
        error = picture_error(decoded, images, config.background, config.edges, config.colour)
        texture = texture_error(decoded, images, config.background)
        saturation = saturation_error(decoded, images)
        total = error + config.texture * texture + config.saturation * saturation
        return {"loss": total, "error": error, "texture": texture, "saturation": saturation}

    def observe(model: AutoencoderKL, step: int) -> dict[str, float]:
        decoded, originals = round_trip(model, judged, run.device), to_tensor(judged)
        some = torch.linspace(0, len(judged) - 1, min(40, len(judged))).long()
        pairs = torch.stack([originals[some], decoded[some]], dim=1).flatten(0, 1)
        save_sheet(to_pixels(pairs), 10, run.folder / f"val-{step:06d}.png")
        return {
            "psnr": psnr(decoded, originals).mean().item(),
            "texture": texture_error(decoded, originals, config.background).item(),
            "saturation": saturation_error(decoded, originals).item(),
        }

    average = fit(autoencoder, Task(draw, step_loss, observe), run, signature)
    average.save_pretrained(run.folder / "model")
    return average


def texture_error(decoded: Tensor, images: Tensor, background: float) -> Tensor:
    """Mean difference of the logarithms of local roughness, of pictures [n, 3, height, width] in [-1, 1].

    Roughness is the deviation of luma over 3x3 pixels; 0.01 is added before the logarithm, half a percent of the way
    from black to white, below which nobody sees it. So 0.02 where it should be 0 weighs as much as 0.1 for 0.03.
    """
    rough, wanted = (torch.log(_roughness(some) + 0.01) for some in (decoded, images))
    error: Tensor = (pixel_weights(images, background) * (rough - wanted).abs()).mean()
    return error


def _roughness(images: Tensor) -> Tensor:
    """[n, 1, height, width]; the border's windows repeat the outermost pixels."""
    luma = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    # Around the middle of the window: the variance of a flat white area would drown in rounding otherwise.
    padded = functional.pad(luma, (1, 1, 1, 1), mode="replicate")
    height, width = luma.shape[-2:]
    steps = [padded[..., i : i + height, j : j + width] - luma for i in range(3) for j in range(3)]
    window = torch.stack(steps)
    return (window.var(0, correction=0) + 1e-6).sqrt()


def saturation_error(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean difference of (max - min) / (max + 0.05), channels brought to 0..1, of pictures [n, 3, height, width].

    In dark pixels hardly an error by any other measure, but a black outline that shimmers is seen.
    """
    is_, should = (_saturation(some.clamp(-1, 1)) for some in (decoded, images))
    return (is_ - should).abs().mean()


def _saturation(images: Tensor) -> Tensor:
    high, low = images.amax(1), images.amin(1)
    return (high - low) / (high + 1 + 0.1)


def main(argv: Sequence[str] | None = None) -> None:
    """`icg train decoder`, or `python -m icg.tiny.decoder`."""
    parser = stage_parser(str(__doc__), "decoder", steps=5000, batch=16)
    parser.add_argument("--autoencoder", type=Path, default=CACHE / "autoencoder" / "model", help="stage 1's model")
    arguments = parser.parse_args(argv)
    run = Run(
        folder=arguments.folder,
        steps=arguments.steps,
        batch=arguments.batch,
        rate=5e-4,
        cooldown=arguments.steps // 4,
        seed=arguments.seed,
        device=arguments.device,
    )
    autoencoder = AutoencoderKL.from_pretrained(arguments.autoencoder, local_files_only=True)
    train(
        DecoderConfig(),
        run,
        autoencoder,
        load(arguments.data, "train"),
        load(arguments.data, "val"),
        signature=fingerprint(arguments.autoencoder / "diffusion_pytorch_model.safetensors"),
    )


if __name__ == "__main__":
    main()
