"""`icg align`: the command. What it does is in `workers.realignment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MOST_STEPS = 300


def add_to(app: typer.Typer) -> None:
    """Register the command on the root of `icg`."""
    app.command()(align)


def align(
    catalogue: Annotated[Path, typer.Argument(help="JSONL or Parquet: title, image, reference.", exists=True)],
    choices: Annotated[Path, typer.Argument(help="Who chose what: user, chosen, rejected.", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Checkpoints, adapters and verdicts; an earlier one is gone on with.")],
    judge: Annotated[Path, typer.Option(help="space and preference of a model that trained nothing.", exists=True)],
    watch: Annotated[bool, typer.Option("--watch", help="Go on with every promoted revision, until SIGTERM.")] = False,
    validation: Annotated[Path | None, typer.Option(help="Catalogue of other items, on which is judged.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=MOST_STEPS, help="Of reward training, for each revision.")] = 300,
    batch: Annotated[int, typer.Option(min=4, help="Rows a step, four people an item.")] = 16,
    rate: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 1e-4,
    pull: Annotated[float, typer.Option(help="Weight of staying with the adapter that is released.")] = 1.0,
    margin: Annotated[float, typer.Option(help="By how many deviations the judge may find it worse.")] = 0.05,
    watched: Annotated[int, typer.Option(min=2, help="Items on which is judged, for eight people each.")] = 24,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    size: Annotated[int, typer.Option(help="Pixels a side of the covers.")] = 64,
    sampler_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps in which covers are drawn; default: the adapter's own.")
    ] = None,
) -> None:
    """Align the adapter to what people's clicks have taught, judge it, release it."""
    from workers import logs
    from workers.realignment import Plan, run
    from workers.settings import settings

    if watch:
        logs.configure(settings(), "align")

    plan = Plan(
        catalogue, choices, folder, judge, validation, steps, batch, rate, pull, margin, watched, device, size,
        sampler_steps,
    )  # fmt: skip
    run(settings(), plan, typer.echo, watch=watch)
