"""`icg train …`: the stages of training, each into a folder of its own, each resumed by calling it again.

Of icg-tiny: autoencoder, decoder, dual-encoder, preference, base, export.
Of any model directory: warmup, liked, rewards, dpo.
Under `accelerate launch` a stage takes all GPUs; `--batch` is over all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.exceptions import UserError

if TYPE_CHECKING:
    from icg.alignment.stages import Stage

app = typer.Typer()

OF_TINY = {
    "autoencoder": "icg.tiny.autoencoder",
    "decoder": "icg.tiny.decoder",
    "dual-encoder": "icg.tiny.dual_encoder",
    "preference": "icg.tiny.preference",
    "base": "icg.tiny.base",
    "export": "icg.tiny.export",
}
"""Stages of icg-tiny: modules whose `main` takes the arguments."""


def _stage_of_tiny(name: str, module: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        stage = _imported(module)
        try:
            stage.main(context.args)
        except ValueError as error:  # BadWeights, Unsupported and pyarrow's are
            raise UserError(str(error)) from None

    command.__doc__ = f"Stage of icg-tiny; see `icg train {name} --help`."
    return command


for _name, _module in OF_TINY.items():
    _settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(_name, context_settings=_settings, add_help_option=False)(_stage_of_tiny(_name, _module))


Model = Annotated[Path, typer.Argument(help="Model directory: base, mllm, adapter, rewards, space, preference.")]
Catalogue = Annotated[Path, typer.Argument(help="JSONL or Parquet: title, image, reference (docs/training.md).")]
Chosen = Annotated[Path, typer.Argument(help="Who chose what: .npz, JSONL or Parquet of user, chosen, rejected.")]
Folder = Annotated[Path, typer.Argument(help="Where this stage keeps checkpoint, log, sheets and its adapter.")]
Start = Annotated[Path | None, typer.Option(help="Folder of the stage before, whose adapter is gone on with.")]
Held = Annotated[Path | None, typer.Option("--validation", help="Catalogue of other items to watch.")]
Judge = Annotated[Path | None, typer.Option(help="Folder with a space and preference that train nothing.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps in all.")]
Rows = Annotated[int, typer.Option("--batch", min=1, help="Rows a step, over all processes and micro-batches.")]
Parts = Annotated[int, typer.Option("--accumulate", min=1, help="Micro-batches a step and process.")]
Rate = Annotated[float, typer.Option(help="AdamW's learning rate.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")]
Size = Annotated[int, typer.Option(help="Pixels a side of the covers.")]
Watched = Annotated[int, typer.Option(min=1, help="Items of validation to draw and look at on the way.")]
Sampler = Annotated[
    int | None,
    typer.Option("--sampler-steps", min=1, help="Steps in which covers are drawn; default: the adapter's own."),
]
Branch = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Share of the steps that an item's covers have in common; default: the adapter's own."
    ),
]


@app.command()
def warmup(
    model: Model,
    catalogue: Catalogue,
    folder: Folder,
    validation: Held = None,
    steps: Steps = 3000,
    batch: Rows = 32,
    accumulate: Parts = 1,
    rate: Rate = 1e-3,
    device: Device = "cpu",
    seed: Seed = 0,
    size: Size = 64,
    sampler_steps: Sampler = None,
    watched: Watched = 12,
    guidance: Annotated[float, typer.Option(help="Of the prediction that is learned.")] = 3.0,
    matching: Annotated[int, typer.Option(help="Steps before, in which tokens alone are matched.")] = 400,
    also: Annotated[list[str] | None, typer.Option(help="Parameters of the MLLM to train too, by prefix.")] = None,
) -> None:
    """The adapter learns to stand in for the base's own text encoder, guidance included."""
    stages = _imported("icg.alignment.stages")
    stage = stages.Stage(model, catalogue, folder, validation, None, device, size, sampler_steps, watched=watched)
    run = stages.Run(folder, steps, batch, rate, accumulate, cooldown=steps // 4, seed=seed, device=device)
    _run(stages.warm_up, stage, run, guidance=guidance, matching=matching, also=tuple(also or ()))


@app.command()
def liked(
    model: Model,
    catalogue: Catalogue,
    choices: Chosen,
    folder: Folder,
    start: Start = None,
    validation: Held = None,
    judge: Judge = None,
    steps: Steps = 2000,
    batch: Rows = 32,
    accumulate: Parts = 1,
    rate: Rate = 5e-4,
    device: Device = "cpu",
    seed: Seed = 0,
    size: Size = 64,
    sampler_steps: Sampler = None,
    watched: Watched = 12,
    strength: Annotated[float, typer.Option(help="How far a user's chosen pictures pull.")] = 2.0,
) -> None:
    """Pictures that users chose teach what their vectors mean."""
    stages = _imported("icg.alignment.stages")
    stage = stages.Stage(
        model, catalogue, folder, validation, start, device, size, sampler_steps, choices, watched, judge
    )
    run = stages.Run(folder, steps, batch, rate, accumulate, cooldown=steps // 4, seed=seed, device=device)
    _run(stages.learn_liked, stage, run, strength=strength)


@app.command()
def rewards(
    model: Model,
    catalogue: Catalogue,
    choices: Chosen,
    folder: Folder,
    start: Start = None,
    validation: Held = None,
    judge: Judge = None,
    steps: Steps = 500,
    batch: Rows = 16,
    accumulate: Parts = 1,
    rate: Rate = 1e-4,
    device: Device = "cpu",
    seed: Seed = 0,
    size: Size = 64,
    sampler_steps: Sampler = None,
    branch: Branch = None,
    watched: Watched = 12,
    observe: Annotated[int, typer.Option(min=1, help="Steps between looks at validation.")] = 50,
    patience: Annotated[int, typer.Option(help="Looks without a gain by the judge, then it ends.")] = 3,
    pull: Annotated[float, typer.Option(help="Weight of staying with the adapter that it starts from.")] = 1.0,
    relevance: Annotated[float, typer.Option(min=0, help="Weight of relevance; the personal reward has 1.")] = 0.15,
    aesthetic: Annotated[float, typer.Option(min=0, help="The same of the aesthetic reward.")] = 0.1,
) -> None:
    """Rewards are back-propagated into the adapter; ends early when the judge sees no more gain."""
    stages = _imported("icg.alignment.stages")
    stage = stages.Stage(
        model, catalogue, folder, validation, start, device, size, sampler_steps, choices, watched, judge, branch
    )
    ends = {"watch": "judge_gain", "patience": patience} if judge else {}
    run = stages.Run(
        folder,
        steps,
        batch,
        rate,
        accumulate,
        20,
        seed=seed,
        device=device,
        observe_steps=observe,
        log_steps=10,
        **ends,
    )
    weights = stages.Weights(relevance=relevance, aesthetic=aesthetic)
    _run(stages.climb_rewards, stage, run, pull=pull, weights=weights)


@app.command()
def dpo(
    model: Model,
    catalogue: Catalogue,
    choices: Chosen,
    folder: Folder,
    start: Start = None,
    validation: Held = None,
    judge: Judge = None,
    steps: Steps = 500,
    batch: Rows = 32,
    accumulate: Parts = 1,
    rate: Rate = 1e-4,
    device: Device = "cpu",
    seed: Seed = 0,
    size: Size = 64,
    sampler_steps: Sampler = None,
    watched: Watched = 12,
    pairs: Annotated[int, typer.Option(min=1, help="Best and worst of eight, drawn once.")] = 512,
    beta: Annotated[float, typer.Option(help="How sharply a difference of errors decides.")] = 500.0,
) -> None:
    """Diffusion-DPO on the best and the worst of eight covers, for rewards without a gradient."""
    stages = _imported("icg.alignment.stages")
    stage = stages.Stage(
        model, catalogue, folder, validation, start, device, size, sampler_steps, choices, watched, judge
    )
    run = stages.Run(folder, steps, batch, rate, accumulate, cooldown=steps // 4, seed=seed, device=device)
    _run(stages.learn_pairs, stage, run, pairs=pairs, beta=beta)


def _imported(module: str) -> Any:
    """A stage's module; what its extra lacks is missed here, and not after an hour."""
    importlib.import_module("torch.utils.tensorboard")
    return importlib.import_module(module)


def _run(stage: Callable[..., Path], given: Stage, run: Any, **config: Any) -> None:
    from icg.exceptions import BadWeights, Unsupported

    try:
        typer.echo(f"{stage(given, run, **config)}")
    except BlockingIOError:
        raise UserError(f"another process trains in {given.folder}") from None
    except (BadWeights, Unsupported, ValueError) as error:
        raise UserError(str(error)) from None
