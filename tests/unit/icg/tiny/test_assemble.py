import hashlib
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from icg.tiny import dual_encoder, mllm, text
from icg.tiny.assemble import build, ship
from tests.small import SIZES


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory with random weights."""
    directory = tmp_path_factory.mktemp("tiny")
    build(directory)
    return directory


def _hashes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_the_base_loads_as_a_stock_pipeline_and_draws(directory: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(directory / "base", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.tokenizer.model_max_length == text.CAPTION_TOKENS
    noise = torch.Generator().manual_seed(0)
    (image,) = pipeline("a red rose", num_inference_steps=2, generator=noise).images
    assert image.size == (64, 64)


def test_the_mllm_loads_with_its_processor_and_reads_pictures(directory: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(directory / "mllm", local_files_only=True)
    processor = AutoProcessor.from_pretrained(directory / "mllm", local_files_only=True)

    def states(picture: Image.Image) -> torch.Tensor:
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "a red rose"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert (inputs.input_ids == processor.image_token_id).sum() == 64
        with torch.no_grad():
            hidden: torch.Tensor = model.model(**inputs).last_hidden_state
        return hidden

    red, blue = states(Image.new("RGB", (80, 64), "red")), states(Image.new("RGB", (80, 64), "blue"))
    assert red.shape == (1, 1 + 64 + 3 + 1, text.WIDTH)
    assert (red[0, -2] - blue[0, -2]).abs().max() > 1e-3  # the picture reaches the states of the title


def test_the_mllm_reads_text_alone_as_minilm_does(directory: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(directory / "mllm", local_files_only=True)
    processor = AutoProcessor.from_pretrained(directory / "mllm", local_files_only=True)
    conversation = [{"role": "user", "content": [{"type": "text", "text": "a red rose"}]}]
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        read = model.model(**inputs).last_hidden_state
        expected = text.encoder()(inputs.input_ids).last_hidden_state
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=0)


def test_the_reward_loads_with_its_processor_and_scores(directory: Path) -> None:
    folder = directory / "rewards" / "relevance"
    model = AutoModel.from_pretrained(folder, local_files_only=True)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    inputs = processor(text=["red", "blue", "green"], images=pictures, padding=True, return_tensors="pt")
    assert model(**inputs).logits_per_image.shape == (2, 3)


def test_no_path_of_this_machine_is_written(directory: Path) -> None:
    for path in directory.rglob("*.json"):
        assert str(text.get_model_path().parent) not in path.read_text(), path


def _ship_all(directory: Path, weights: Path) -> dict[str, torch.Tensor]:
    """In float32; the autoencoder's tensors."""
    pipeline = StableDiffusionPipeline.from_pretrained(directory / "base", local_files_only=True)
    reader = AutoModelForImageTextToText.from_pretrained(directory / "mllm", local_files_only=True)
    relevance = AutoModel.from_pretrained(directory / "rewards" / "relevance", local_files_only=True)
    tensors: dict[str, torch.Tensor] = pipeline.vae.state_dict()
    ship(tensors, weights, "autoencoder", torch.float32)
    ship(pipeline.unet.state_dict(), weights, "unet", torch.float32)
    ship(mllm.own_weights(reader), weights, "mllm", torch.float32)
    ship(dual_encoder.own_weights(relevance), weights, "relevance", torch.float32)
    return tensors


def test_shipped_weights_come_back_and_random_ones_do_not_remain(directory: Path, tmp_path: Path) -> None:
    weights, again = tmp_path / "weights", tmp_path / "again"
    _ship_all(directory, weights)
    assert max(path.stat().st_size for path in weights.iterdir()) < 15 * 2**20  # the UNet's 37 MB lie in three files
    assert len(list(weights.glob("unet-*.safetensors"))) == 3
    build(again, weights, seed=1)
    assert _hashes(again) == _hashes(directory)


def test_weights_are_shipped_in_halves_or_coarser_and_odd_ones_are_refused(tiny: Path, tmp_path: Path) -> None:
    weights, mended = tmp_path / "weights", tmp_path / "mended"
    tensors = _ship_all(tiny, weights)
    ship(tensors, weights, "autoencoder")
    build(mended, weights, sizes=SIZES)
    vae = StableDiffusionPipeline.from_pretrained(mended / "base", local_files_only=True).vae
    for name, tensor in vae.state_dict().items():
        torch.testing.assert_close(tensor, tensors[name].half().float(), atol=0, rtol=0)

    fine = sum(path.stat().st_size for path in weights.glob("autoencoder-*"))
    ship(tensors, weights, "autoencoder", coarse="encoder.")
    assert sum(path.stat().st_size for path in weights.glob("autoencoder-*")) < 0.85 * fine
    build(mended, weights, sizes=SIZES)
    vae = StableDiffusionPipeline.from_pretrained(mended / "base", local_files_only=True).vae
    for name, tensor in vae.state_dict().items():
        near = {"atol": 0.002, "rtol": 0.07} if name.startswith("encoder.") else {"atol": 0.0, "rtol": 0.0}
        torch.testing.assert_close(tensor, tensors[name].half().float(), **near)

    ship({"odd": torch.zeros(1)}, weights, "unet")
    with pytest.raises(ValueError, match=r"unet: \d+ tensors missing or unknown"):
        build(mended, weights, sizes=SIZES)
    (weights / "unet-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no unet-1.safetensors"):
        build(mended, weights, sizes=SIZES)


def test_the_seed_decides_the_random_weights(tmp_path: Path) -> None:
    build(tmp_path / "first", sizes=SIZES)
    torch.rand(1)  # the global generator has no say
    build(tmp_path / "same", sizes=SIZES)
    build(tmp_path / "other", seed=1, sizes=SIZES)
    first, same, other = (_hashes(tmp_path / name) for name in ("first", "same", "other"))
    assert same == first
    assert {path for path in first if other[path] != first[path]} == {
        "base/unet/diffusion_pytorch_model.safetensors",
        "base/vae/diffusion_pytorch_model.safetensors",
        "mllm/model.safetensors",
        "rewards/relevance/model.safetensors",
    }
