"""Write the model directory of icg-tiny in the ordinary `save_pretrained` layouts.

    base/               StableDiffusionPipeline: autoencoder, MiniLM, UNet, scheduler, tokenizer
    mllm/               LlavaForConditionalGeneration and its processor
    rewards/relevance/  VisionTextDualEncoderModel and its processor

MiniLM comes from its package; only what icg-tiny trained itself is ever shipped, in safetensors.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertModel

from icg.tiny import autoencoder, base, dual_encoder, mllm, text
from icg.tiny.files import write_whole

MOST_BYTES = 14 * 2**20  # of tensors in a shipped file, which may have 15 MiB in the repository


@dataclass(frozen=True)
class Sizes:
    """Of a stack of these classes; by default icg-tiny's own, with which alone its weights fit.

    Attributes:
        encoder: the text model that three of the parts share.
    """

    vae: autoencoder.AutoencoderConfig = field(default_factory=autoencoder.AutoencoderConfig)
    unet: base.BaseConfig = field(default_factory=base.BaseConfig)
    relevance: dual_encoder.DualEncoderConfig = field(default_factory=dual_encoder.DualEncoderConfig)
    encoder: Callable[[], BertModel] = text.encoder


def build(directory: Path, weights: Path | None = None, seed: int = 0, sizes: Sizes | None = None) -> None:
    """Write the model directory; existing files of it are replaced.

    Args:
        directory: the model directory.
        weights: folder with the parts `autoencoder`, `unet`, `mllm` and `relevance` as `ship` writes them; None draws
            random weights from `seed`: the same classes and sizes, and pictures of noise.
        seed: of the random weights.
        sizes: icg-tiny's without.

    Raises:
        FileNotFoundError: `weights` lacks a part.
        ValueError: a part's tensors are not those of its model.
    """
    sizes = sizes or Sizes()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = sizes.encoder()
        vae = autoencoder.build(sizes.vae)
        unet = base.build_unet(sizes.unet, encoder.config.hidden_size)
        reader = mllm.build(sizes.encoder())
        relevance = dual_encoder.build(sizes.relevance, sizes.encoder())
    if weights is not None:
        load_part(vae.state_dict(), weights, "autoencoder")
        load_part(unet.state_dict(), weights, "unet")
        load_part(mllm.own_weights(reader), weights, "mllm")
        load_part(dual_encoder.own_weights(relevance), weights, "relevance")
    base.build_pipeline(unet, vae, encoder).save_pretrained(directory / "base")
    reader.model.save_pretrained(directory / "mllm")  # no head: nobody asks it, and it would be a third of the file
    mllm.processor().save_pretrained(directory / "mllm")
    relevance.save_pretrained(directory / "rewards" / "relevance")
    dual_encoder.processor().save_pretrained(directory / "rewards" / "relevance")


def ship(
    part: dict[str, Tensor], weights: Path, name: str, dtype: torch.dtype = torch.float16, coarse: str | None = None
) -> None:
    """Write one part's tensors to `weights/NAME-1.safetensors`, -2 and so on, each of at most MOST_BYTES.

    The part's older files are replaced.

    Args:
        coarse: tensors whose names begin so are written in 8 bits (e4m3).
    """
    files: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in part.items():
        small = coarse is not None and key.startswith(coarse)
        kept = tensor.detach().to("cpu", torch.float8_e4m3fn if small else dtype).contiguous()
        if size + kept.nbytes > MOST_BYTES:
            files.append({})
            size = 0
        files[-1][key] = kept
        size += kept.nbytes
    for old in weights.glob(f"{name}-*.safetensors"):
        old.unlink()
    for number, tensors in enumerate(files, start=1):
        write_whole(weights / f"{name}-{number}.safetensors", partial(save_file, tensors))


def load_part(own: dict[str, Tensor], weights: Path, name: str) -> None:
    """Copy a part's files into the tensors of a model, which a state dict shares."""
    files = sorted(weights.glob(f"{name}-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{weights} has no {name}-1.safetensors")
    tensors = {key: tensor for file in files for key, tensor in load_file(file).items()}
    if tensors.keys() != own.keys():
        odd = sorted(tensors.keys() ^ own.keys())
        raise ValueError(f"{weights}/{name}: {len(odd)} tensors missing or unknown, such as {odd[0]}")
    for key, tensor in own.items():
        if tensors[key].shape != tensor.shape:
            raise ValueError(f"{weights}/{name}: {key} is {tuple(tensors[key].shape)}, not {tuple(tensor.shape)}")
        tensor.copy_(tensors[key])


def main() -> None:
    """`python -m icg.tiny.assemble DIRECTORY`."""
    parser = argparse.ArgumentParser(description="Write the model directory of icg-tiny.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--weights", type=Path, help="folder of trained parts; random weights without it")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    arguments = parser.parse_args()
    build(arguments.directory, arguments.weights, arguments.seed)


if __name__ == "__main__":
    main()
