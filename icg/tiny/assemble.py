"""Write the model directory of icg-tiny in the ordinary `save_pretrained` layouts.

    base/               StableDiffusionPipeline: autoencoder, MiniLM, UNet, scheduler, tokenizer
    mllm/               LlavaForConditionalGeneration and its processor
    rewards/relevance/  VisionTextDualEncoderModel and its processor

MiniLM comes from its package; only what icg-tiny trained itself is ever shipped, one safetensors file a part.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from icg.tiny import autoencoder, base, dual_encoder, mllm, text
from icg.tiny.files import write_whole


def build(directory: Path, weights: Path | None = None, seed: int = 0) -> None:
    """Write the model directory; existing files of it are replaced.

    Args:
        directory: the model directory.
        weights: folder of `autoencoder`, `unet`, `mllm` and `relevance`, each with the suffix `.safetensors`, in any
            float type; None draws random weights from `seed`: the same classes and sizes, and pictures of noise.
        seed: of the random weights.

    Raises:
        FileNotFoundError: `weights` lacks a part.
        ValueError: a part's tensors are not those of its model.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = autoencoder.build(autoencoder.AutoencoderConfig())
        unet = base.build_unet(base.BaseConfig())
        reader = mllm.build()
        relevance = dual_encoder.build()
    if weights is not None:
        _load(vae.state_dict(), weights / "autoencoder.safetensors")
        _load(unet.state_dict(), weights / "unet.safetensors")
        _load(mllm.own_weights(reader), weights / "mllm.safetensors")
        _load(dual_encoder.own_weights(relevance), weights / "relevance.safetensors")
    base.build_pipeline(unet, vae, text.encoder()).save_pretrained(directory / "base")
    reader.save_pretrained(directory / "mllm")
    mllm.processor().save_pretrained(directory / "mllm")
    relevance.save_pretrained(directory / "rewards" / "relevance")
    dual_encoder.processor().save_pretrained(directory / "rewards" / "relevance")


def ship(part: dict[str, Tensor], path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write one part's weights as `build` reads them, in fp16 unless told otherwise."""
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in part.items()}
    write_whole(path, lambda partial: save_file(tensors, partial))


def _load(own: dict[str, Tensor], path: Path) -> None:
    """Copy a file's tensors into those of a model, which a state dict shares."""
    tensors = load_file(path)
    if tensors.keys() != own.keys():
        odd = sorted(tensors.keys() ^ own.keys())
        raise ValueError(f"{path}: {len(odd)} tensors missing or unknown, such as {odd[0]}")
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(f"{path}: {name} is {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}")
        tensor.copy_(tensors[name])


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
