import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from icg.training import Batch, Run, Task, ema_weights, fit


def draw(generator: torch.Generator) -> Batch:
    return {"inputs": torch.randn(16, 4, generator=generator)}


def loss(model: nn.Linear, batch: Batch) -> dict[str, Tensor]:
    inputs = batch["inputs"]
    error = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
    return {"loss": error, "size": inputs.square().mean()}


def weights(model: nn.Linear, _: int) -> dict[str, float]:
    return {"first": model.weight[0, 0].item()}


TASK = Task(draw, loss, weights)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(folder=tmp_path / "whole", steps=60, batch=16, rate=0.05, warmup=5, cooldown=20, log_steps=10)


class Counting(nn.Linear):
    """With a statistic of the past, as the rewards have."""

    def __init__(self) -> None:
        super().__init__(4, 1)
        self.register_buffer("seen", torch.zeros(()))


def count(model: Counting, figures: dict[str, float]) -> None:
    model.seen.lerp_(torch.tensor(figures["size"]), 0.1)


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(run: Run, tmp_path: Path) -> None:
    steps = 0

    def stopping(model: Counting, batch: Batch) -> dict[str, Tensor]:
        nonlocal steps
        steps += 1
        if steps == 23:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch)

    def model() -> Counting:
        torch.manual_seed(0)
        return Counting()

    whole = model()
    whole_average = fit(whole, Task(draw, loss, weights, count), run, "linear")
    parts, task = replace(run, folder=tmp_path / "parts"), Task(draw, stopping, weights, count)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 23 of 60"):
        fit(model(), task, parts, "linear")
    assert steps == 23  # it stopped after the step in which it was asked to
    resumed = model()
    resumed_average = fit(resumed, task, parts, "linear")

    assert steps == 60
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole_average.weight, resumed_average.weight)
    assert torch.equal(whole.seen, resumed.seen)
    assert whole.seen > 0
    assert not torch.equal(whole.weight, whole_average.weight)


def test_micro_batches_change_nothing_but_rounding(run: Run, tmp_path: Path) -> None:
    whole, parts = linear(), linear()
    fit(whole, TASK, run, "linear")
    fit(parts, TASK, replace(run, folder=tmp_path / "parts", accumulate=4), "linear")
    torch.testing.assert_close(whole.weight, parts.weight, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="a batch of 16 is not shared evenly by 3"):
        fit(linear(), TASK, replace(run, folder=tmp_path / "odd", accumulate=3), "linear")


def test_processes_change_nothing_but_rounding(run: Run, tmp_path: Path) -> None:
    """Two processes under torchrun, as under `accelerate launch`."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_training import TASK, Run, fit, linear\n"
        "fit(linear(), TASK, Run(Path(sys.argv[1]), 60, 16, 0.05, warmup=5, cooldown=20, log_steps=10), 'linear')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path / "two")], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    fit(linear(), TASK, run, "linear")
    one, two = ema_weights(run.folder), ema_weights(tmp_path / "two")
    torch.testing.assert_close(one["weight"], two["weight"], atol=1e-5, rtol=0)
    lines = (tmp_path / "two" / "log.jsonl").read_text().splitlines()
    assert len(lines) == len((run.folder / "log.jsonl").read_text().splitlines())  # one of them writes


def test_the_average_learns(run: Run) -> None:
    average = fit(linear(), TASK, run, "linear")
    torch.testing.assert_close(average.weight, torch.ones(1, 4), atol=0.15, rtol=0)


def test_tensorboard_has_what_the_log_has(run: Run) -> None:
    fit(linear(), TASK, run, "linear")
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20, 30, 40, 50, 60]
    assert [event.step for event in events.Scalars("first")] == [60]


def test_it_stops_when_the_watched_figure_gets_no_better_and_keeps_the_best(run: Run, tmp_path: Path) -> None:
    heights = {10: 1.0, 20: 3.0, 30: 2.0, 40: 2.5, 50: 9.0}
    at: dict[int, Tensor] = {}

    def observe(model: nn.Linear, step: int) -> dict[str, float]:
        at[step] = model.weight.clone()
        return {"height": heights[step]}

    stopping = replace(run, observe_steps=10, watch="height", patience=2)
    average = fit(linear(), Task(draw, loss, observe), stopping, "linear")
    assert sorted(at) == [10, 20, 30, 40]
    assert torch.equal(average.weight, at[20])
    again = fit(linear(), Task(draw, loss, observe), stopping, "linear")  # it has ended: nothing more happens
    assert sorted(at) == [10, 20, 30, 40]
    assert torch.equal(again.weight, at[20])
    with pytest.raises(ValueError, match="patience needs"):
        replace(run, patience=2)


def test_a_checkpoint_of_something_else_is_refused(run: Run) -> None:
    fit(linear(), TASK, run, "linear")
    with pytest.raises(ValueError, match="was trained as linear, not as conv"):
        fit(linear(), TASK, run, "conv")


def test_what_is_frozen_is_neither_moved_nor_saved_nor_copied(run: Run) -> None:
    model = linear()
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    average = fit(model, TASK, run, "linear")
    assert torch.equal(model.bias, before)
    assert average.bias is model.bias
    assert set(ema_weights(run.folder)) == {"weight"}


def test_two_trainings_never_share_a_folder(run: Run) -> None:
    def train_within(model: nn.Linear, batch: Batch) -> dict[str, Tensor]:
        fit(linear(), TASK, run, "linear")
        return loss(model, batch)

    with pytest.raises(BlockingIOError):
        fit(linear(), Task(draw, train_within, weights), run, "linear")


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
