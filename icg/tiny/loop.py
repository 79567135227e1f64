"""One training loop for every stage: resumable to the bit, EMA, a log of JSON lines.

Nothing random is carried from step to step: what a step draws comes from a generator seeded by (seed, step), so a
resumed run needs no RNG state and equals an uninterrupted one. The rate is warmed up, constant, then cooled down
linearly before the last step; so `steps` may be raised later as long as the cooldown has not begun.
"""

import argparse
import copy
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from icg.tiny.files import CACHE, DATA, write_whole

Model = TypeVar("Model", bound=nn.Module)
# (model in training, generator of this step) -> loss
Loss = Callable[[Model, torch.Generator], Tensor]
# (EMA model, step) -> figures to log
Observe = Callable[[Model, int], dict[str, float]]


@dataclass(frozen=True)
class Run:
    """How long and where a stage trains; what it trains is the stage's own config."""

    folder: Path  # checkpoint, log and pictures of the stage
    steps: int  # optimizer steps in all, over every resumption
    batch: int  # pictures a step
    rate: float  # AdamW's learning rate between warm-up and cooldown
    warmup: int = 200  # steps from 0 to `rate`
    cooldown: int = 0  # last steps, from `rate` to 0
    weight_decay: float = 0.01  # AdamW's, on every parameter
    ema: float = 0.999  # decay of the averaged weights; smaller in the first steps
    seed: int = 0  # of the initial weights and of every step
    device: str = "cpu"  # bf16 autocast on cuda; float32 on CPUs, where bf16 is slower (no AVX-512)
    save_seconds: float = 180.0  # between checkpoints
    observe_seconds: float = 600.0  # between validations
    log_steps: int = 50  # between lines of the log

    def rate_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., steps - 1."""
        up = min(1.0, (step + 1) / max(1, self.warmup))
        down = min(1.0, (self.steps - step) / max(1, self.cooldown))
        return self.rate * min(up, down)

    def generator(self, step: int) -> torch.Generator:
        """The only source of randomness of a step, on the CPU so that every device draws the same."""
        return torch.Generator().manual_seed(self.seed * 1_000_000_007 + step)


def fit(model: Model, loss: Loss[Model], observe: Observe[Model], run: Run, signature: str) -> Model:
    """Train from the folder's checkpoint, or from `model` as it is, to `run.steps`; return the EMA model in eval mode.

    Args:
        model: trained in place. Parameters that do not require a gradient are left alone and not saved.
        signature: names architecture and data; a checkpoint of another one is refused.

    Raises:
        ValueError: the folder holds a checkpoint with another signature.
        BlockingIOError: another process trains in this folder.
    """
    with _alone(run.folder), _stop_requests() as stop:
        return _fit(model.to(run.device).train(), loss, observe, run, signature, stop)


def _fit(
    model: Model, loss: Loss[Model], observe: Observe[Model], run: Run, signature: str, stop: threading.Event
) -> Model:
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=run.rate, weight_decay=run.weight_decay)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    averaged = {name: tensor for name, tensor in average.named_parameters() if name in trained}
    checkpoint = run.folder / "checkpoint.pt"
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=run.device, weights_only=True)
        if state["signature"] != signature:
            raise ValueError(f"{checkpoint} was trained as {state['signature']}, not as {signature}")
        step = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for name in trained:
                trained[name].copy_(state["model"][name])
                averaged[name].copy_(state["ema"][name])

    def save() -> None:
        state = {
            "signature": signature,
            "step": step,
            "model": {name: tensor.detach() for name, tensor in trained.items()},
            "ema": averaged,
            "optimizer": optimizer.state_dict(),
        }
        write_whole(checkpoint, lambda partial: torch.save(state, partial))

    autocast = torch.device(run.device).type == "cuda"
    saved = observed = logged = time.monotonic()
    logged_step = step
    while step < run.steps and not stop.is_set():
        for group in optimizer.param_groups:
            group["lr"] = run.rate_at(step)
        with torch.autocast(torch.device(run.device).type, torch.bfloat16, enabled=autocast):
            value = loss(model, run.generator(step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        decay = min(run.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.values()), list(trained.values()), 1 - decay)
        step += 1
        now = time.monotonic()
        if step % run.log_steps == 0:
            rate = (step - logged_step) / (now - logged)
            _log(run, step, loss=value.item(), norm=norm.item(), steps_per_second=rate)
            logged, logged_step = now, step
        if now - saved >= run.save_seconds:
            save()
            saved = time.monotonic()
        if now - observed >= run.observe_seconds:
            _log(run, step, **observe(average, step))
            observed = logged = time.monotonic()
            logged_step = step
    save()
    if not stop.is_set():
        _log(run, step, **observe(average, step))
    return average


def ema_weights(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of a stage's newest checkpoint, finished or not, on the CPU."""
    weights: dict[str, Tensor] = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)["ema"]
    return weights


def stage_parser(description: str, stage: str, steps: int, batch: int) -> argparse.ArgumentParser:
    """The arguments that every stage takes on its command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=DATA, help="the emoji parquet file")
    parser.add_argument("--folder", type=Path, default=CACHE / stage, help="checkpoint, log and pictures")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps in all")
    parser.add_argument("--batch", type=int, default=batch, help="pictures a step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _log(run: Run, step: int, **figures: float) -> None:
    line = {"time": round(time.time()), "step": step, **{name: round(x, 5) for name, x in figures.items()}}
    with (run.folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(line, flush=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, with our process id in it; the system lets go of it however the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "pid").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """SIGTERM asks for a checkpoint after the running step instead of losing up to `save_seconds` of work."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
