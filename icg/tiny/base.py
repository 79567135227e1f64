"""Stage 3: the base, a small text-to-picture diffusion model in the layout of a stock Stable Diffusion pipeline.

v-prediction with zero terminal SNR (Lin et al., arXiv 2305.08891): every picture stands on white, which a schedule that
never quite reaches noise could not learn to draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from transformers import BertModel

from icg.tiny import text
from icg.tiny.autoencoder import encode
from icg.tiny.caption_states import CaptionStates, cached_states
from icg.tiny.data import Pictures, load, mirrorable
from icg.tiny.files import CACHE, fingerprint
from icg.tiny.pixels import save_sheet, to_pixels
from icg.tiny.stage import stage_parser
from icg.training import Batch, Run, Task, fit


@dataclass(frozen=True)
class BaseConfig:
    """9.3 M parameters, 17.7 MiB in fp16; 44 pictures/s in training on two busy cores."""

    channels: tuple[int, ...] = (128, 160)  # at 8x8 and at 4x4, both with cross-attention
    layers: int = 1  # residual blocks per resolution on the way down, one more on the way up
    heads: int = 4  # of every attention
    latent_channels: int = 16  # of the autoencoder
    latent_size: int = 8  # numbers a side
    drop: float = 0.1  # share of captions that are empty, for guidance
    guidance: float = 3.0  # of the contact sheets
    sheet_titles: int = 8  # of a contact sheet from training and as many from validation, four pictures each
    sheet_steps: int = 20  # of the sampler for the contact sheets


def build_unet(config: BaseConfig, width: int = text.WIDTH) -> UNet2DConditionModel:
    """The denoiser with fresh weights from torch's global seed."""
    levels = len(config.channels)
    return UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        attention_head_dim=config.heads,  # diffusers' name for the number of heads
        cross_attention_dim=width,
    )


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of training and its deterministic sampler."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,  # has no effect with trailing spacing; the pipeline warns at any other value
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def build_pipeline(
    unet: UNet2DConditionModel, autoencoder: AutoencoderKL, encoder: BertModel
) -> StableDiffusionPipeline:
    """The stock pipeline; a call draws 64x64 pictures."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer=text.caption_tokenizer(),
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def noised(latents: Tensor, states: Tensor, scheduler: DDIMScheduler, generator: torch.Generator) -> Batch:
    """What `loss` takes for latents [n, channels, side, side] and states [n, tokens, WIDTH]: noise, uniform times."""
    times = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    return {"latents": latents, "states": states, "noise": noise, "times": times}


def loss(unet: UNet2DConditionModel, scheduler: DDIMScheduler, batch: Batch) -> Tensor:
    """Mean squared error of v."""
    latents, noise, times = batch["latents"], batch["noise"], batch["times"]
    noisy = scheduler.add_noise(latents, noise, times)
    predicted = unet(noisy, times, batch["states"]).sample.float()
    return functional.mse_loss(predicted, scheduler.get_velocity(latents, noise, times))


@torch.no_grad()
def draw(pipeline: StableDiffusionPipeline, titles: list[str], seed: int, guidance: float, steps: int) -> Tensor:
    """One picture a title, [n, 3, height, width] in [-1, 1]; picture i has the noise of seed + i."""
    noise = [torch.Generator().manual_seed(seed + place) for place in range(len(titles))]
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        titles,
        num_inference_steps=steps,
        guidance_scale=guidance,
        guidance_rescale=0.7,  # Lin et al.: without it guided pictures of a zero-SNR model are overexposed
        generator=noise,
        output_type="pt",
    ).images
    drawn: Tensor = images * 2 - 1
    return drawn


def train(
    config: BaseConfig,
    run: Run,
    autoencoder: AutoencoderKL,
    pictures: Pictures,
    held_out: Pictures,
    captions: CaptionStates,
    signature: str = "",
) -> UNet2DConditionModel:
    """Train to `run.steps` and return the EMA denoiser.

    Args:
        autoencoder: frozen, with folded latents.
        held_out: pictures whose loss and titles are watched.
        captions: of `pictures`.
        signature: names autoencoder and captions, so that no checkpoint goes on with others.
    """
    torch.manual_seed(run.seed)
    unet = build_unet(config)
    scheduler = build_scheduler()
    encoder = text.encoder(run.device)
    tokenizer = text.caption_tokenizer()
    autoencoder = autoencoder.to(run.device).eval().requires_grad_(False)
    pixels = torch.from_numpy(pictures.pixels)
    latents = torch.stack([encode(autoencoder, seen, run.device) for seen in (pixels, pixels.flip(2))])
    turned = torch.tensor([mirrorable(str(title)) for title in pictures.titles])
    unseen = encode(autoencoder, torch.from_numpy(held_out.pixels), run.device)
    unseen_titles = [str(title) for title in held_out.titles]
    shown = _spread(pictures, config.sheet_titles) + _spread(held_out, config.sheet_titles)

    def draw_rows(generator: torch.Generator) -> Batch:
        rows = torch.randint(0, len(pixels), (run.batch,), generator=generator)
        mirrored = turned[rows] & (torch.rand(run.batch, generator=generator) < 0.5)
        states = captions.draw(rows, generator, config.drop)
        return noised(latents[mirrored.long(), rows], states, scheduler, generator)

    def step_loss(model: UNet2DConditionModel, batch: Batch) -> dict[str, Tensor]:
        return {"loss": loss(model, scheduler, batch)}

    @torch.no_grad()
    def observe(model: UNet2DConditionModel, step: int) -> dict[str, float]:
        losses = []
        for part in torch.split(torch.arange(len(unseen)), 128):
            states, _ = text.caption_states(encoder, tokenizer, [unseen_titles[row] for row in part.tolist()])
            batch = noised(unseen[part], states, scheduler, run.generator(int(part[0])))
            value = loss(model, scheduler, {name: tensor.to(run.device) for name, tensor in batch.items()})
            losses.append(value.item() * len(part))
        pipeline = build_pipeline(model, autoencoder, encoder)
        drawn = draw(pipeline, [title for title in shown for _ in range(4)], 0, config.guidance, config.sheet_steps)
        save_sheet(to_pixels(drawn), 8, run.folder / f"sheet-{step:06d}.png")
        return {"val": sum(losses) / len(unseen)}

    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "titles.txt").write_text("\n".join(shown) + "\n")
    signature = f"{config.channels} {config.layers} {config.heads} {signature}"
    average = fit(unet, Task(draw_rows, step_loss, observe), run, signature)
    average.save_pretrained(run.folder / "model")
    return average


def _spread(pictures: Pictures, count: int) -> list[str]:
    """Titles evenly spread over the file's order, which goes from faces by way of animals to signs."""
    titles = list(dict.fromkeys(str(title) for title in pictures.titles))
    return [titles[(2 * place + 1) * len(titles) // (2 * count)] for place in range(count)]


def main(argv: Sequence[str] | None = None) -> None:
    """`icg train base`, or `python -m icg.tiny.base`."""
    parser = stage_parser(str(__doc__), "base", steps=20_000, batch=32)
    parser.add_argument("--autoencoder", type=Path, default=CACHE / "autoencoder" / "model", help="stage 1's model")
    arguments = parser.parse_args(argv)
    autoencoder = AutoencoderKL.from_pretrained(arguments.autoencoder, local_files_only=True)
    pictures = load(arguments.data, "train")
    run = Run(
        folder=arguments.folder,
        steps=arguments.steps,
        batch=arguments.batch,
        rate=5e-4,
        warmup=200,
        cooldown=arguments.steps // 5,
        ema=0.9995,
        seed=arguments.seed,
        device=arguments.device,
        observe_seconds=900,
    )
    train(
        BaseConfig(),
        run,
        autoencoder,
        pictures,
        load(arguments.data, "val"),
        cached_states(pictures, arguments.data, CACHE, arguments.device),
        signature=fingerprint(arguments.autoencoder / "diffusion_pytorch_model.safetensors"),
    )


if __name__ == "__main__":
    main()
