from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText

from icg.tiny import autoencoder, base, dual_encoder
from icg.tiny.assemble import build
from icg.tiny.export import export


def _checkpoint(model: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """What the training loop leaves of a model in a stage's folder; returns its trained weights."""
    trained = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
    folder.mkdir()
    torch.save({"ema": trained}, folder / "checkpoint.pt")
    return trained


def test_what_the_stages_trained_is_what_the_assembled_models_hold(tmp_path: Path) -> None:
    torch.manual_seed(5)
    vae = autoencoder.build(autoencoder.AutoencoderConfig())
    vae.save_pretrained(tmp_path / "autoencoder" / "model")
    unet = _checkpoint(base.build_unet(base.BaseConfig()), tmp_path / "base")
    relevance = _checkpoint(dual_encoder.build(dual_encoder.DualEncoderConfig()), tmp_path / "dual_encoder")

    sizes = export(tmp_path, tmp_path / "weights")
    assert sum(sizes.values()) < 28 * 2**20  # of 32 MiB; the rest is the adapter's
    directory = tmp_path / "tiny"
    build(directory, tmp_path / "weights")

    def half(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.half().float()

    drawn = UNet2DConditionModel.from_pretrained(directory / "base" / "unet", local_files_only=True).state_dict()
    assert all(torch.equal(drawn[name], half(tensor)) for name, tensor in unet.items())
    decoded = AutoencoderKL.from_pretrained(directory / "base" / "vae", local_files_only=True).state_dict()
    fine = {name: half(tensor) for name, tensor in vae.state_dict().items() if not name.startswith("encoder.")}
    assert all(torch.equal(decoded[name], tensor) for name, tensor in fine.items())
    judged = AutoModel.from_pretrained(directory / "rewards" / "relevance", local_files_only=True).state_dict()
    assert all(torch.equal(judged[name], half(tensor)) for name, tensor in relevance.items())
    reader = AutoModelForImageTextToText.from_pretrained(directory / "mllm", local_files_only=True)
    tower = reader.model.vision_tower.state_dict()
    assert all(torch.equal(tower[name], judged[f"vision_model.{name}"]) for name in tower)
