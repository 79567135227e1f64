"""The whole chain on a whole stack of random weights, from files to files, as `icg train` runs it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from icg.adapter import Adapter
from icg.alignment.catalogue import Choices
from icg.generator import CoverGenerator
from icg.init import init_tiny
from icg.item import Item
from icg.sampling import SamplerConfig
from icg.tiny.assemble import ship
from tests.small import SIZES, small_encoder
from workers.train import app

FEW = ["--steps", "2", "--sampler-steps", "2", "--batch", "4", "--watched", "2"]
RUNNER = CliRunner()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def choices_file(choices: Choices, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("choices") / "choices.npz"
    np.savez(path, user=choices.users, chosen=choices.chosen, rejected=choices.rejected)
    return path


def train(*arguments: object) -> None:
    done = RUNNER.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_warm_up_liked_rewards_and_a_model_directory_of_what_they_trained(
    tiny: Path, catalogue_file: Path, choices_file: Path, tmp_path: Path
) -> None:
    warm, liked, aligned = (tmp_path / name for name in ("warm", "liked", "aligned"))
    also = "model.multi_modal_projector."
    train("warmup", tiny, catalogue_file, warm, *FEW, "--matching", 1, "--also", also)
    assert (warm / "mllm").is_dir()
    train("liked", tiny, catalogue_file, choices_file, liked, *FEW, "--start", warm)
    judged = ["--judge", tiny, "--observe", 2, "--patience", 9]
    train("rewards", tiny, catalogue_file, choices_file, aligned, *FEW, "--start", liked, *judged)
    assert (aligned / "best.pt").exists()

    first, last = (Adapter.from_pretrained(folder / "adapter").state_dict() for folder in (tiny, aligned))
    assert not torch.equal(first["meta"], last["meta"])  # by the warm-up
    assert not torch.equal(first["user_in.weight"], last["user_in.weight"])  # by liked-SFT and the rewards

    # Whoever loads the result draws for people.
    stack = CoverGenerator.from_parts(
        tiny / "base", aligned / "mllm", aligned / "adapter", sampler=SamplerConfig(steps=2, branch=0.0)
    )
    context = stack.encode([Item("a disc")])
    neutral, one, other = stack.generate(context, [[None, np.eye(64)[0] * 3, -np.eye(64)[0] * 3]], [1])[0]
    assert len({image.tobytes() for image in (neutral, one, other)}) == 3


def test_the_stages_refuse_in_one_line(tiny: Path, catalogue_file: Path, choices_file: Path, tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["warmup", str(tiny), str(catalogue_file), str(tmp_path / "w"), "--also", "nothing."])
    assert "no parameter of LlavaForConditionalGeneration begins with nothing." in str(done.exception)
    unfinished = ["liked", tiny, catalogue_file, choices_file, tmp_path / "l", "--start", tmp_path]
    done = RUNNER.invoke(app, [str(argument) for argument in unfinished])
    assert "has no adapter yet: that stage has not ended" in str(done.exception)


def test_an_adapter_among_the_shipped_weights_is_the_adapter_of_the_model(tiny: Path, tmp_path: Path) -> None:
    """`icg train export` ships the adapter; `icg init tiny` from those weights has it."""
    from icg.tiny import autoencoder, base, dual_encoder, mllm

    weights = tmp_path / "weights"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        ship(autoencoder.build(SIZES.vae).state_dict(), weights, "autoencoder")
        ship(base.build_unet(SIZES.unet, small_encoder().config.hidden_size).state_dict(), weights, "unet")
        ship(mllm.own_weights(mllm.build(small_encoder())), weights, "mllm")
        relevance = dual_encoder.build(SIZES.relevance, small_encoder())
        ship(dual_encoder.own_weights(relevance), weights, "relevance")
    trained = {
        name: torch.randn_like(value) for name, value in Adapter.from_pretrained(tiny / "adapter").state_dict().items()
    }
    ship(trained, weights, "adapter")
    init_tiny(tmp_path / "model", weights=weights, sizes=SIZES)
    loaded = Adapter.from_pretrained(tmp_path / "model" / "adapter").state_dict()
    assert all(torch.equal(loaded[name], value.half().float()) for name, value in trained.items())
