"""Collect what the stages have trained into the folder of weights that `assemble.build` reads and that is shipped."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection, LlavaForConditionalGeneration

from icg.adapter import WEIGHTS
from icg.preference import Head
from icg.tiny import mllm, preference
from icg.tiny.assemble import ship
from icg.tiny.files import CACHE
from icg.training import ema_weights


def export(stages: Path, weights: Path, aligned: Path | None = None) -> dict[str, int]:
    """Write autoencoder, unet, relevance, preference, mllm and adapter as trained so far; return bytes a file.

    In fp16, and the autoencoder's encoder in 8 bits.

    The MLLM's vision tower begins as the relevance reward's, its projector random: both are trained with the adapter.

    Args:
        stages: the folder of the stage folders. Without `preference_a` there is no preference model yet.
        weights: where the safetensors files go.
        aligned: folder of the alignment's last stage, with `adapter` and `mllm`; None: there is no adapter yet.

    Raises:
        FileNotFoundError: a stage has no checkpoint yet.
    """
    decoder = stages / "decoder" / "model"
    autoencoder = AutoencoderKL.from_pretrained(
        decoder if decoder.exists() else stages / "autoencoder" / "model", local_files_only=True
    )
    relevance = ema_weights(stages / "dual_encoder")
    reader = _reader(relevance, aligned)
    # Only training encodes pictures; 8 bits cost the round trip 0.04 dB and move latents of deviation 1 by 0.014.
    ship(autoencoder.state_dict(), weights, "autoencoder", coarse="encoder.")
    ship(ema_weights(stages / "base"), weights, "unet")
    ship(relevance, weights, "relevance")
    ship(mllm.own_weights(reader), weights, "mllm")
    if (tastes := stages / "preference_a").joinpath("preference").is_dir():
        covers = CLIPVisionModelWithProjection.from_pretrained(tastes / "space", local_files_only=True)
        ship(preference.own_weights(covers, Head.load(tastes / "preference")), weights, "preference")
    if aligned is not None:
        ship(load_file(aligned / "adapter" / WEIGHTS), weights, "adapter")
    return {path.name: path.stat().st_size for path in sorted(weights.glob("*.safetensors"))}


def _reader(relevance: dict[str, Tensor], aligned: Path | None) -> LlavaForConditionalGeneration:
    """The MLLM as the alignment left it, or as it begins."""
    if aligned is not None and (aligned / "mllm").is_dir():
        trained: LlavaForConditionalGeneration = LlavaForConditionalGeneration.from_pretrained(
            aligned / "mllm", local_files_only=True, use_safetensors=True
        )
        return trained
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader = mllm.build()
    tower = {
        name.removeprefix("vision_model."): tensor
        for name, tensor in relevance.items()
        if name.startswith("vision_model.")
    }
    reader.model.vision_tower.load_state_dict(tower)
    return reader


def main(argv: Sequence[str] | None = None) -> None:
    """`icg train export WEIGHTS`, or `python -m icg.tiny.export WEIGHTS`."""
    parser = argparse.ArgumentParser("icg train export", description="Collect the trained parts of icg-tiny in fp16.")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--stages", type=Path, default=CACHE, help="folder of the stage folders")
    parser.add_argument("--aligned", type=Path, help="folder of the alignment's last stage")
    arguments = parser.parse_args(argv)
    sizes = export(arguments.stages, arguments.weights, arguments.aligned)
    for name, size in sizes.items():
        print(f"{name}: {size / 2**20:.1f} MiB")
    print(f"in all: {sum(sizes.values()) / 2**20:.1f} of 32 MiB")


if __name__ == "__main__":
    main()
