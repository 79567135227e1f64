"""One training loop for every stage: resumable to the bit, on one device or many, with EMA, a log and TensorBoard.

Nothing random is carried from step to step: what a step draws comes from a generator seeded by (seed, step), so a
resumed run needs no RNG state and equals an uninterrupted one. A stage draws the *whole* step's batch, noise included;
the loop cuts it into micro-batches and, under `accelerate launch`, deals them out to the processes. So a step means the
same however many there are of either.

Gradients are averaged by hand, once a step: the losses here call more of their models than `forward`, and that alone is
where the hooks of DistributedDataParallel sit.

The rate is warmed up, constant, then cooled down linearly before the last step; so `steps` may be raised later as long
as the cooldown has not begun.
"""

from __future__ import annotations

import copy
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from icg.tiny.files import write_whole
from icg.training_log import Log

if TYPE_CHECKING:
    from accelerate import Accelerator

Model = TypeVar("Model", bound=nn.Module)
Batch = dict[str, Tensor]


def _nothing(model: nn.Module, figures: Mapping[str, float]) -> None:
    """Most stages remember nothing from step to step."""


@dataclass(frozen=True)
class Task(Generic[Model]):
    """What a stage learns and how it is watched."""

    # The rows of a step, all that is random in it included; every tensor is [Run.batch, ...], on the CPU.
    draw: Callable[[torch.Generator], Batch]
    # Of some of those rows, on the model's device: "loss", which is minimised, and other figures to log; all scalars,
    # means over the rows.
    loss: Callable[[Model, Batch], dict[str, Tensor]]
    # (EMA model in eval mode, step) -> figures to log
    observe: Callable[[Model, int], dict[str, float]]
    # After every step, with the figures of its loss, whole batch: for running statistics in the model's buffers.
    stepped: Callable[[Model, Mapping[str, float]], None] = _nothing


@dataclass(frozen=True)
class Run:
    """How long and where a stage trains; what it trains is the stage's own config."""

    folder: Path  # checkpoint, log and pictures of the stage
    steps: int  # optimizer steps in all, over every resumption
    batch: int  # rows a step, over all processes and micro-batches
    rate: float  # AdamW's learning rate between warm-up and cooldown
    accumulate: int = 1  # micro-batches a step and process; with the processes it divides `batch`
    warmup: int = 200  # steps from 0 to `rate`
    cooldown: int = 0  # last steps, from `rate` to 0
    weight_decay: float = 0.01  # AdamW's, on every parameter
    ema: float = 0.999  # decay of the averaged weights; smaller in the first steps
    seed: int = 0  # of the initial weights and of every step
    device: str = "cpu"  # bf16 autocast on cuda; float32 on CPUs, where bf16 is slower (no AVX-512)
    save_seconds: float = 180.0  # between checkpoints
    observe_seconds: float = 600.0  # between validations
    observe_steps: int = 0  # steps between validations instead, for stages that stop early
    watch: str = ""  # figure of `observe` to be as great as can be: its best weights are the result
    patience: int = 0  # validations without a better `watch` until the run stops; 0: never
    log_steps: int = 50  # between lines of the log

    def __post_init__(self) -> None:
        if self.patience and not (self.watch and self.observe_steps):
            raise ValueError("patience needs a figure to watch and observe_steps, so that a resumed run stops alike")

    def rate_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., steps - 1."""
        up = min(1.0, (step + 1) / max(1, self.warmup))
        down = min(1.0, (self.steps - step) / max(1, self.cooldown))
        return self.rate * min(up, down)

    def generator(self, step: int) -> torch.Generator:
        """The only source of randomness of a step, on the CPU so that every device draws the same."""
        return torch.Generator().manual_seed(self.seed * 1_000_000_007 + step)


def fit(model: Model, task: Task[Model], run: Run, signature: str) -> Model:
    """Train from the folder's checkpoint, or from `model` as it is, to `run.steps`; return the EMA model in eval mode.

    With `run.watch` that is the best EMA model that was observed.

    Args:
        model: trained in place. Parameters that do not require a gradient are left alone, not saved and not copied.
        signature: names architecture and data; a checkpoint of another one is refused.

    Raises:
        ValueError: the folder holds a checkpoint with another signature, or the batch cannot be shared out.
        BlockingIOError: another process trains in this folder.
        KeyboardInterrupt: it was told to stop, and has saved its checkpoint; there is no result yet.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(
        cpu=torch.device(run.device).type == "cpu",
        mixed_precision="bf16" if torch.device(run.device).type == "cuda" else "no",
    )
    shares = accelerator.num_processes * run.accumulate
    if run.batch % shares:
        raise ValueError(f"a batch of {run.batch} is not shared evenly by {shares} processes x micro-batches")
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(_alone(run.folder))
        accelerator.wait_for_everyone()
        stop = stack.enter_context(_stop_requests())
        log = stack.enter_context(Log(run.folder, run.steps, accelerator.is_main_process))
        return _Fit(model, task, run, signature, accelerator, log).to_the_end(stop)


class _Fit(Generic[Model]):
    """The state of a run: weights, their average, the optimizer, the step, and the best so far."""

    def __init__(
        self, model: Model, task: Task[Model], run: Run, signature: str, accelerator: Accelerator, log: Log
    ) -> None:
        self.model = model.to(accelerator.device).train()
        self.task, self.run, self.signature = task, run, signature
        self.accelerator, self.log = accelerator, log
        self.trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        self.buffers = _persistent_buffers(model)
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=run.rate, weight_decay=run.weight_decay)
        # What is frozen is shared with the copy: it may be a language model of many gigabytes.
        frozen = {id(tensor): tensor for tensor in model.parameters() if not tensor.requires_grad}
        self.average = copy.deepcopy(model, frozen).eval().requires_grad_(False)
        self.averaged = {name: tensor for name, tensor in self.average.named_parameters() if name in self.trained}
        self.step = 0
        self.best: dict[str, float] = {"value": -float("inf"), "step": 0, "since": 0}
        self.path = run.folder / "checkpoint.pt"
        if self.path.exists():
            self._load()
        self.log.begin(self.step)

    def to_the_end(self, stop: threading.Event) -> Model:
        run, main = self.run, self.accelerator.is_main_process
        saved = observed = time.monotonic()
        last_observed = self.step
        while self.step < run.steps and not self._agreed(stop.is_set() or self._given_up()):
            figures = self._step()
            if self.step % run.log_steps == 0:
                self.log(self.step, **figures, rate=run.rate_at(self.step - 1))
            now = time.monotonic()
            due = self.step % run.observe_steps == 0 if run.observe_steps else now - observed >= run.observe_seconds
            if main and due:
                self._observe()
                observed, last_observed = time.monotonic(), self.step
            if main and now - saved >= run.save_seconds:
                self._save()
                saved = time.monotonic()
        if main:
            if not stop.is_set() and last_observed != self.step and not self._given_up():
                self._observe()
            self._save()
        self.accelerator.wait_for_everyone()
        if stop.is_set():
            raise KeyboardInterrupt(f"stopped at step {self.step} of {run.steps}")
        best = run.folder / "best.pt"
        if run.watch and best.exists():
            _copy_into(self.averaged, torch.load(best, map_location="cpu", weights_only=True))
        return self.average

    def _step(self) -> dict[str, float]:
        run, accelerator = self.run, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = run.rate_at(self.step)
        batch = self.task.draw(run.generator(self.step))
        shares = split(batch, accelerator.num_processes * run.accumulate)
        first = accelerator.process_index * run.accumulate
        mine = shares[first : first + run.accumulate]
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for share in mine:
            with accelerator.autocast():
                losses = self.task.loss(
                    self.model, {name: value.to(accelerator.device) for name, value in share.items()}
                )
            accelerator.backward(losses["loss"] / len(mine))
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros(())) + value.detach().float().cpu() / len(mine)
        self._share_gradients()
        norm = nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        decay = min(run.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.values()), list(self.trained.values()), 1 - decay)
        self.step += 1
        names = sorted(totals)
        means = accelerator.reduce(torch.stack([totals[name] for name in names]).to(accelerator.device), "mean")
        figures = dict(zip(names, means.tolist(), strict=True))
        self.task.stepped(self.model, figures)
        return {**figures, "norm": norm.item()}

    def _share_gradients(self) -> None:
        """Average over the processes. A tensor that no row of a step reached has gradient zero, here as there."""
        for tensor in self.trained.values():
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
        if self.accelerator.num_processes > 1:
            gradients = [tensor.grad for tensor in self.trained.values() if tensor.grad is not None]
            flat = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def _agreed(self, wish: bool) -> bool:
        """Whether any process wants to stop: they stop together or wait for one another for ever."""
        if self.accelerator.num_processes == 1:
            return wish
        wishes: Any = self.accelerator.reduce(torch.tensor(float(wish), device=self.accelerator.device), "sum")
        return bool(wishes.item() > 0)

    def _given_up(self) -> bool:
        return bool(self.run.patience) and self.best["since"] >= self.run.patience

    def _observe(self) -> None:
        _copy_into(_persistent_buffers(self.average), self.buffers)
        figures = self.task.observe(self.average, self.step)
        if figures:
            self.log(self.step, **figures)
        if not self.run.watch:
            return
        if figures[self.run.watch] > self.best["value"]:
            self.best = {"value": figures[self.run.watch], "step": self.step, "since": 0}
            write_whole(self.run.folder / "best.pt", lambda partial: torch.save(self.averaged, partial))
        else:
            self.best["since"] += 1

    def _save(self) -> None:
        state = {
            "signature": self.signature,
            "step": self.step,
            "model": {name: tensor.detach() for name, tensor in self.trained.items()},
            "buffers": self.buffers,
            "ema": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
        }
        write_whole(self.path, lambda partial: torch.save(state, partial))

    def _load(self) -> None:
        state = torch.load(self.path, map_location=self.accelerator.device, weights_only=True)
        if state["signature"] != self.signature:
            raise ValueError(f"{self.path} was trained as {state['signature']}, not as {self.signature}")
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        _copy_into(self.trained, state["model"])
        _copy_into(self.averaged, state["ema"])
        if self.buffers:
            _copy_into(self.buffers, state["buffers"])
        self.best = state.get("best", self.best)


def split(batch: Batch, parts: int) -> list[Batch]:
    """Equal shares of a batch's rows, neighbours together."""
    chunks = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: values[part] for name, values in chunks.items()} for part in range(parts)]


def ema_weights(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of a stage's newest checkpoint, finished or not, on the CPU."""
    weights: dict[str, Tensor] = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)["ema"]
    return weights


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


@torch.no_grad()
def _copy_into(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        tensor.copy_(given[name])


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
    """SIGTERM or Ctrl-C ask for a checkpoint after the running step; a second Ctrl-C does not wait for it."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
