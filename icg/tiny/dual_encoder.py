"""Stage 2: the relevance reward, a `VisionTextDualEncoderModel` of our vision tower and frozen MiniLM.

Its score is the cosine between a picture and a title. Trained with CLIP's contrastive loss on real pictures, on their
round trip through the autoencoder and on round trips of noised latents, because those are what it will have to judge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from transformers import (
    BertModel,
    CLIPVisionModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from icg.tiny import text
from icg.tiny.autoencoder import augment, encode
from icg.tiny.caption_states import CaptionStates, cached_states
from icg.tiny.captions import BARE, TEMPLATES
from icg.tiny.data import Pictures, load
from icg.tiny.files import CACHE, fingerprint, write_whole
from icg.tiny.pixels import to_pixels, to_tensor
from icg.tiny.stage import stage_parser
from icg.tiny.vision import image_processor, vision_config
from icg.training import Batch, Run, Task, fit


@dataclass(frozen=True)
class DualEncoderConfig:
    """1.0 M trained parameters beside MiniLM's 22 M frozen ones."""

    projection: int = 128  # width in which picture and title meet
    noise: float = 0.8  # greatest deviation of the noise on latents of deviation 1; beyond it shapes are gone


def build(config: DualEncoderConfig, frozen: BertModel | None = None) -> VisionTextDualEncoderModel:
    """MiniLM (or another) frozen but for its pooler, which reads the first token and which MiniLM's own training never
    used."""
    frozen = frozen or text.encoder()
    joint = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision_config(), frozen.config, projection_dim=config.projection
    )
    model = VisionTextDualEncoderModel(joint, CLIPVisionModel(vision_config()), frozen)
    model.text_model.pooler.requires_grad_(True)
    model.train(False)
    return model


def processor() -> VisionTextDualEncoderProcessor:
    """Image processor and tokenizer of the reward, as it is shipped."""
    return VisionTextDualEncoderProcessor(image_processor(), text.caption_tokenizer())


def own_weights(model: VisionTextDualEncoderModel) -> dict[str, Tensor]:
    """What is not MiniLM: the vision tower, both projections, the temperature and the retrained pooler."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("text_model.") or name.startswith("text_model.pooler.")
    }


def similarity(model: VisionTextDualEncoderModel, images: Tensor, states: Tensor) -> Tensor:
    """Cosines [images, captions] of pictures [n, 3, 64, 64] in [-1, 1] and MiniLM states [m, tokens, WIDTH]."""
    seen = model.visual_projection(model.vision_model(pixel_values=images).pooler_output)
    read = model.text_projection(model.text_model.get_submodule("pooler")(states))
    return functional.normalize(seen, dim=-1) @ functional.normalize(read, dim=-1).T


def loss(model: VisionTextDualEncoderModel, images: Tensor, states: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy; caption i is picture i's, and no two captions mean the same."""
    logits = model.logit_scale.clamp(max=4.6).exp() * similarity(model, images, states)  # at most 100, as in CLIP
    right = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2


@torch.no_grad()
def hits(cosines: Tensor, title: Tensor, among: int = 5) -> float:
    """Share of pictures whose own title is among the nearest; `cosines` [n, titles], `title` [n] the right column."""
    nearest = cosines.topk(among, dim=1).indices
    return (nearest == title[:, None]).any(dim=1).float().mean().item()


@torch.no_grad()
def worn(
    autoencoder: AutoencoderKL, pixels: Tensor, config: DualEncoderConfig, device: str, kept: Path | None = None
) -> Tensor:
    """The pictures again as uint8 [n, height, width, 3], out of latents with noise of a random deviation on them.

    A third has no noise: the plain round trip.

    Args:
        kept: file of the result, minutes of work on a CPU; written if it is not there.
    """
    if kept is not None and kept.exists():
        return torch.from_numpy(np.load(kept))
    generator = torch.Generator().manual_seed(0)
    latents = encode(autoencoder, pixels, device)
    deviation = (torch.rand(len(latents), generator=generator) * 1.5 - 0.5).clamp_min(0) * config.noise
    noisy = latents + deviation[:, None, None, None] * torch.randn(latents.shape, generator=generator)
    parts = [to_pixels(autoencoder.decode(part.to(device)).sample) for part in torch.split(noisy, 128)]
    again = np.concatenate(parts)
    if kept is not None:
        write_whole(kept, lambda partial: np.save(partial, again))
    return torch.from_numpy(again)


def worn_file(folder: Path, autoencoder: Path, data: Path) -> Path:
    """Where the worn pictures of a data file are kept, for all stages beside `folder`: they see the same."""
    read = fingerprint(autoencoder / "diffusion_pytorch_model.safetensors")
    return folder.parent / f"worn-{read}-{fingerprint(data)}.npy"


def train(
    config: DualEncoderConfig,
    run: Run,
    autoencoder: AutoencoderKL,
    pictures: Pictures,
    held_out: Pictures,
    captions: CaptionStates,
    signature: str = "",
    kept: Path | None = None,
) -> VisionTextDualEncoderModel:
    """Train to `run.steps` and return the EMA model.

    Args:
        autoencoder: frozen, with folded latents.
        held_out: pictures whose titles are guessed among the held-out titles, as a check.
        captions: of `pictures`.
        signature: names autoencoder and captions, so that no checkpoint goes on with others.
        kept: file of the worn pictures.
    """
    torch.manual_seed(run.seed)
    model = build(config)
    autoencoder = autoencoder.to(run.device).eval().requires_grad_(False)
    real = torch.from_numpy(pictures.pixels)
    seen_as = torch.stack([real, worn(autoencoder, real, config, run.device, kept)])
    rows_of = [torch.nonzero(captions.title == title)[:, 0] for title in range(len(captions.plain))]
    first_tokens = captions.plain[:, :, :1].float()  # the pooler reads no other

    encoder, tokenizer = text.encoder(run.device), text.caption_tokenizer()
    new_titles, new_title = np.unique(held_out.titles, return_inverse=True)
    new_states, _ = text.caption_states(encoder, tokenizer, [str(title) for title in new_titles])

    def draw(generator: torch.Generator) -> Batch:
        # One picture a title: the others of the batch are the wrong answers.
        titles = torch.randperm(len(rows_of), generator=generator)[: run.batch]
        chance = torch.rand(3, len(titles), generator=generator)
        rows = torch.stack([rows_of[t][int(u * len(rows_of[t]))] for t, u in zip(titles, chance[0], strict=True)])
        images = augment(to_tensor(seen_as[(chance[1] < 0.5).long(), rows]), generator)
        template = torch.randint(1, len(TEMPLATES), (len(titles),), generator=generator)
        template[chance[2] < BARE] = 0
        return {"images": images, "states": first_tokens[titles, template]}

    def step_loss(model: VisionTextDualEncoderModel, batch: Batch) -> dict[str, Tensor]:
        return {"loss": loss(model, batch["images"], batch["states"])}

    @torch.no_grad()
    def observe(model: VisionTextDualEncoderModel, step: int) -> dict[str, float]:
        images = to_tensor(held_out.pixels).to(run.device)
        cosines = torch.cat([similarity(model, part, new_states) for part in torch.split(images, 128)]).cpu()
        right = torch.from_numpy(new_title)
        return {"hit5": hits(cosines, right), "hit1": hits(cosines, right, 1), "chance5": 5 / len(new_titles)}

    return fit(model, Task(draw, step_loss, observe), run, f"{config.projection} {signature}")


def main(argv: Sequence[str] | None = None) -> None:
    """`icg train dual-encoder`, or `python -m icg.tiny.dual_encoder`."""
    parser = stage_parser(str(__doc__), "dual_encoder", steps=3000, batch=128)
    parser.add_argument("--autoencoder", type=Path, default=CACHE / "autoencoder" / "model", help="stage 1's model")
    arguments = parser.parse_args(argv)
    pictures = load(arguments.data, "train")
    run = Run(
        folder=arguments.folder,
        steps=arguments.steps,
        batch=arguments.batch,
        rate=1e-3,
        warmup=200,
        cooldown=arguments.steps // 4,
        weight_decay=0.1,
        seed=arguments.seed,
        device=arguments.device,
        observe_seconds=300,
    )
    train(
        DualEncoderConfig(),
        run,
        AutoencoderKL.from_pretrained(arguments.autoencoder, local_files_only=True),
        pictures,
        load(arguments.data, "val"),
        cached_states(pictures, arguments.data, CACHE, arguments.device),
        signature=fingerprint(arguments.autoencoder / "diffusion_pytorch_model.safetensors"),
        kept=worn_file(arguments.folder, arguments.autoencoder, arguments.data),
    )


if __name__ == "__main__":
    main()
