"""Stage 1: the autoencoder between 64x64 pictures and 8x8x16 latents, a stock diffusers `AutoencoderKL`.

Left out on purpose: attention in the middle and a discriminator; both cost more time than they give at 8x8 latents of
flat drawings. After training, `fold` moves every latent channel to mean 0 and deviation 1 inside the two 1x1
convolutions, so that a pipeline needs no scaling factor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from icg.tiny.data import Pictures, load
from icg.tiny.pixels import psnr, save_sheet, to_pixels, to_tensor
from icg.tiny.stage import stage_parser
from icg.training import Batch, Run, Task, fit


@dataclass(frozen=True)
class AutoencoderConfig:
    """3.4 M parameters; 25 images/s in training on three cores, most of it spent at 64x64 (32 channels)."""

    channels: tuple[int, ...] = (32, 48, 96, 128)  # per resolution: 64, 32, 16, 8
    latent_channels: int = 16  # 8x8x16 = 1024 numbers a picture, a twelfth of its pixels
    norm_groups: int = 8  # of the group norms; divides every entry of `channels`
    background: float = 0.3  # weight of a pixel whose 5x5 neighbourhood is all white; half of all pixels are white
    edges: float = 0.5  # weight of the error of differences between neighbours, beside L1 and MSE
    colour: float = 1.0  # weight of the error of colour differences; without it purple is grey after 16,000 pictures
    recolour: float = 0.5  # share of training pictures with permuted channels: most are yellow, few green or purple
    kl: float = 2e-4  # per latent number; leaves the posterior a little noise, so that near-misses still decode


def build(config: AutoencoderConfig, size: int = 64) -> AutoencoderKL:
    """The model with fresh weights from torch's global seed; `size` is only noted in its config."""
    levels = len(config.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=size,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def loss(model: AutoencoderKL, images: Tensor, noise: Tensor, config: AutoencoderConfig) -> Tensor:
    """`picture_error` of the round trip and a tiny KL.

    Args:
        images: [n, 3, height, width] in [-1, 1].
        noise: [n, latent channels, height/8, width/8], normal: the posterior's sample.
    """
    posterior = model.encode(images).latent_dist
    decoded = model.decode(posterior.mean + posterior.std * noise).sample
    error = picture_error(decoded, images, config.background, config.edges, config.colour)
    # diffusers sums the KL over a picture's latents.
    kl: Tensor = posterior.kl().mean() / posterior.mean[0].numel()
    return error + config.kl * kl


def picture_error(decoded: Tensor, images: Tensor, background: float, edges: float, colour: float) -> Tensor:
    """Weighted L1 + MSE + errors of neighbour and of colour differences, of pictures [n, 3, height, width].

    Colour differences are red - green and blue - (red + green) / 2 of 4x4 blocks: few pixels of line art carry any, so
    the plain error learns them last.
    """
    error = decoded - images
    weight = pixel_weights(images, background)
    pixel = (weight * (error.abs() + error.square())).mean()
    across = (weight[..., 1:] * (error[..., 1:] - error[..., :-1]).abs()).mean()
    down = (weight[..., 1:, :] * (error[..., 1:, :] - error[..., :-1, :]).abs()).mean()
    red, green, blue = functional.avg_pool2d(error, 4).unbind(dim=1)
    hue = ((red - green).abs() + (blue - (red + green) / 2).abs()).mean()
    return pixel + edges * (across + down) + colour * hue


def pixel_weights(images: Tensor, background: float) -> Tensor:
    """[n, 1, height, width]: 1 where something is drawn within 2 pixels, `background` elsewhere."""
    drawn = (images.amin(dim=1, keepdim=True) < 0.97).to(images.dtype)
    near = functional.max_pool2d(drawn, kernel_size=5, stride=1, padding=2)
    return background + (1 - background) * near


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the pictures and shift each by up to 3 pixels; the new border is white."""
    n, _, height, width = images.shape
    mirrored = torch.rand(n, generator=generator) < 0.5
    shifts = torch.randint(0, 7, (n, 2), generator=generator).tolist()
    padded = functional.pad(images, (3, 3, 3, 3), value=1.0)
    shifted = torch.stack(
        [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, shifts, strict=True)]
    )
    return torch.where(mirrored.to(images.device)[:, None, None, None], shifted.flip(3), shifted)


def recolour(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Permute red, green and blue of a share of the pictures [n, 3, height, width]; white, grey and black stay."""
    orders = torch.rand(len(images), 3, generator=generator).argsort(dim=1)
    orders[torch.rand(len(images), generator=generator) >= share] = torch.arange(3)
    return images[torch.arange(len(images))[:, None], orders]


@torch.no_grad()
def encode(model: AutoencoderKL, pixels: Tensor, device: str, batch: int = 128) -> Tensor:
    """Posterior means [n, latents, height/8, width/8] on the CPU, of uint8 pixels [n, height, width, 3]."""
    return torch.cat(
        [model.encode(to_tensor(part.to(device))).latent_dist.mean.cpu() for part in torch.split(pixels, batch)]
    )


@torch.no_grad()
def fold(model: AutoencoderKL, latents: Tensor) -> None:
    """Rewrite the 1x1 convolutions so that `latents` would have come out with mean 0 and deviation 1 a channel.

    Args:
        latents: [n, channels, height, width] posterior means of the training pictures under the model as it is.
    """
    channels = latents.shape[1]
    mean = latents.mean(dim=(0, 2, 3)).to(model.device)
    deviation = latents.std(dim=(0, 2, 3)).to(model.device)
    into, out = model.quant_conv, model.post_quant_conv
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()  # the other half are log variances
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]


@torch.no_grad()
def round_trip(model: AutoencoderKL, pixels: Tensor, device: str, batch: int = 128) -> Tensor:
    """Decoded posterior means [n, 3, height, width] on the CPU."""
    latents = encode(model, pixels, device, batch)
    return torch.cat([model.decode(part.to(device)).sample.cpu() for part in torch.split(latents, batch)])


def train(config: AutoencoderConfig, run: Run, pictures: Pictures, held_out: Pictures) -> AutoencoderKL:
    """Train to `run.steps` and return the folded model; also written to `folder/model` in `save_pretrained` layout."""
    torch.manual_seed(run.seed)
    model = build(config, pictures.pixels.shape[1])
    pixels = torch.from_numpy(pictures.pixels)
    judged = torch.from_numpy(held_out.pixels)

    side = pixels.shape[1] // 2 ** (len(config.channels) - 1)

    def draw(generator: torch.Generator) -> Batch:
        rows = torch.randint(0, len(pixels), (run.batch,), generator=generator)
        images = recolour(augment(to_tensor(pixels[rows]), generator), config.recolour, generator)
        noise = torch.randn(run.batch, config.latent_channels, side, side, generator=generator)
        return {"images": images, "noise": noise}

    def step_loss(model: AutoencoderKL, batch: Batch) -> dict[str, Tensor]:
        return {"loss": loss(model, batch["images"], batch["noise"], config)}

    def observe(model: AutoencoderKL, step: int) -> dict[str, float]:
        decoded = round_trip(model, judged, run.device)
        originals = to_tensor(judged)
        some = torch.linspace(0, len(judged) - 1, min(40, len(judged))).long()
        pairs = torch.stack([originals[some], decoded[some]], dim=1).flatten(0, 1)
        save_sheet(to_pixels(pairs), 10, run.folder / f"val-{step:06d}.png")
        pooled = (decoded.clamp(-1, 1) - originals).square().mean() / 4
        return {"psnr": psnr(decoded, originals).mean().item(), "psnr_pooled": (-10 * pooled.log10()).item()}

    signature = f"{config.channels} {config.latent_channels} {config.norm_groups}"
    average = fit(model, Task(draw, step_loss, observe), run, signature)
    fold(average, encode(average, pixels, run.device))
    average.save_pretrained(run.folder / "model")
    return average


def main(argv: Sequence[str] | None = None) -> None:
    """`icg train autoencoder`, or `python -m icg.tiny.autoencoder`."""
    arguments = stage_parser(str(__doc__), "autoencoder", steps=5000, batch=16).parse_args(argv)
    run = Run(
        folder=arguments.folder,
        steps=arguments.steps,
        batch=arguments.batch,
        rate=1e-3,
        cooldown=arguments.steps // 4,
        seed=arguments.seed,
        device=arguments.device,
    )
    train(AutoencoderConfig(), run, load(arguments.data, "train"), load(arguments.data, "val"))


if __name__ == "__main__":
    main()
