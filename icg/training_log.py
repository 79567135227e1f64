"""What a training run writes while it runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Log:
    """`log.jsonl`, TensorBoard's events beside it, and on a terminal a progress bar instead of the lines."""

    def __init__(self, folder: Path, steps: int, main: bool) -> None:
        self.folder = folder
        self.steps = steps
        self.main = main
        self.bar: Progress | None = None
        self.writer: Any = None
        self.logged = (0, time.monotonic())

    def begin(self, step: int) -> None:
        self.logged = (step, time.monotonic())
        if not self.main:
            return
        from torch.utils.tensorboard import SummaryWriter

        # What an interrupted run had written after its checkpoint is hidden.
        self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        if sys.stdout.isatty():
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.fields[figures]}"))
            self.bar.add_task(self.folder.name, total=self.steps, completed=step, figures="")
            self.bar.start()

    def __call__(self, step: int, **figures: float) -> None:
        if not self.main:
            return
        before, then = self.logged
        self.logged = (step, time.monotonic())
        if step > before and "loss" in figures:
            figures["steps_per_second"] = (step - before) / (self.logged[1] - then)
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        line = {"time": round(time.time()), "step": step, **{name: float(f"{x:.5g}") for name, x in figures.items()}}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        if self.bar is None:
            print(line, flush=True)
        else:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self.bar.update(self.bar.task_ids[0], completed=step, figures=shown)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.writer is not None:
            self.writer.close()
