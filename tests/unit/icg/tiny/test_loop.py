import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from icg.tiny.loop import Run, fit


def _loss(model: nn.Linear, generator: torch.Generator) -> Tensor:
    inputs = torch.randn(16, 4, generator=generator)
    value: Tensor = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
    return value


def _model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def _weights(model: nn.Linear, _: int) -> dict[str, float]:
    return {"first": model.weight[0, 0].item()}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(folder=tmp_path / "whole", steps=60, batch=8, rate=0.05, warmup=5, cooldown=20, log_steps=10)


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(run: Run, tmp_path: Path) -> None:
    whole = _model()
    whole_average = fit(whole, _loss, _weights, run, "linear")

    parts = replace(run, folder=tmp_path / "parts")
    interrupted = 0

    def loss_until_told(model: nn.Linear, generator: torch.Generator) -> Tensor:
        nonlocal interrupted
        interrupted += 1
        if interrupted == 23:
            os.kill(os.getpid(), signal.SIGTERM)
        return _loss(model, generator)

    fit(_model(), loss_until_told, _weights, parts, "linear")
    assert interrupted == 23  # it stopped after the step in which it was asked to
    resumed = _model()
    resumed_average = fit(resumed, loss_until_told, _weights, parts, "linear")

    assert interrupted == 60
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole_average.weight, resumed_average.weight)
    assert not torch.equal(whole.weight, whole_average.weight)


def test_the_average_learns(run: Run) -> None:
    average = fit(_model(), _loss, _weights, run, "linear")
    torch.testing.assert_close(average.weight, torch.ones(1, 4), atol=0.15, rtol=0)


def test_a_checkpoint_of_something_else_is_refused(run: Run) -> None:
    fit(_model(), _loss, _weights, run, "linear")
    with pytest.raises(ValueError, match="was trained as linear, not as conv"):
        fit(_model(), _loss, _weights, run, "conv")


def test_a_frozen_parameter_is_neither_moved_nor_saved(run: Run) -> None:
    model = _model()
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    fit(model, _loss, _weights, run, "linear")
    assert torch.equal(model.bias, before)
    assert set(torch.load(run.folder / "checkpoint.pt", weights_only=True)["ema"]) == {"weight"}


def test_two_trainings_never_share_a_folder(run: Run) -> None:
    def train_within(model: nn.Linear, generator: torch.Generator) -> Tensor:
        fit(_model(), _loss, _weights, run, "linear")
        return _loss(model, generator)

    with pytest.raises(BlockingIOError):
        fit(_model(), train_within, _weights, run, "linear")


def test_the_rate_rises_stays_and_falls_to_zero_after_the_last_step(run: Run) -> None:
    rates = [run.rate_at(step) for step in range(run.steps + 1)]
    assert rates[0] == pytest.approx(run.rate / 5)
    assert rates[4:41] == [run.rate] * 37
    assert rates[50] == pytest.approx(run.rate / 2)
    assert rates[60] == 0


def test_steps_and_seeds_draw_different_numbers(run: Run) -> None:
    drawn = {
        torch.rand(1, generator=replace(run, seed=seed).generator(step)).item() for seed in (0, 1) for step in range(5)
    }
    assert len(drawn) == 10
