"""The commands `icg eval` and `icg branch`. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from icg.evaluation.bootstrap import Interval

MODEL = Path("model")
ALL = ("base", "mllm", "adapter", "rewards", "space", "preference")


def _writable(file: Path | None) -> Path | None:
    """Said at the start, not after minutes of work."""
    if file is not None and (file.is_dir() or not file.resolve().parent.is_dir()):
        raise typer.BadParameter(f"no file can be written at {file}")
    return file


JsonFile = Annotated[Path | None, typer.Option("--json", callback=_writable, help="Write the figures there.")]


def add_to(app: typer.Typer) -> None:
    """Mount the commands."""
    app.command(name="eval")(evaluate)
    app.command(name="branch")(branch)


def evaluate(
    model: Annotated[
        Path, typer.Argument(help="Folder of base, mllm, adapter, rewards, space and preference.")
    ] = MODEL,
    json_file: JsonFile = None,
    stage: Annotated[
        list[int] | None, typer.Option(min=0, max=6, help="Rungs of the ladder, repeatable; 0 to 2 need no adapter.")
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(help="What an item brings: title, reference, both, wrong_reference; repeatable."),
    ] = None,
    contenders: Annotated[str, typer.Option(help="Rung 5 with these alone, by comma, and neutral and icg.")] = "",
    liked_sft: Annotated[Path | None, typer.Option(help="Adapter folder of that contender; rung 4.")] = None,
    sheet: Annotated[Path | None, typer.Option(callback=_writable, help="PNG: 12 titles, 9 covers each.")] = None,
    split: Annotated[str, typer.Option(help="val, or test for reporting.")] = "val",
    why: Annotated[str, typer.Option(help="Reason of a look at the test split, for its log.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of noise and references.")] = 0,
    people: Annotated[int | None, typer.Option(min=2, help="Held-out people.")] = None,
    concepts: Annotated[
        int | None, typer.Option(min=2, help="Held-out concepts, evenly spaced; all by default.")
    ] = None,
    titles: Annotated[int | None, typer.Option(min=1, help="Titles that the base is asked for on rung 2.")] = None,
    personalization: Annotated[
        float | None, typer.Option(min=0, help="Of the covers: 0 neutral, 1 as trained; default: as the adapter says.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The emoji parquet file.")] = None,
    judges: Annotated[Path | None, typer.Option(help="Folder of the trained judges.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where what was judged is kept.")] = None,
) -> None:
    """Climb the ladder of a model: what simulated people, who never trained it, think of its covers."""
    stages = tuple(stage or range(7))
    upper = sheet is not None or bool({3, 4, 5, 6}.intersection(stages))
    if split not in {"val", "test"}:
        raise typer.BadParameter(f"--split {split} is neither val nor test")
    if upper or {1, 2}.intersection(stages):
        _there(model, ALL if upper else ("base",))
    from icg.conditioning import load_base
    from icg.evaluation import run
    from icg.evaluation.bench import Bench
    from icg.evaluation.cases import GIVEN
    from icg.evaluation.emoji import CACHE
    from icg.evaluation.report import versions
    from icg.evaluation.world import EvalConfig, World
    from icg.tiny.files import DATA

    settings = tuple(one for one in GIVEN if not given or one in given)
    if unknown := sorted({*(given or ())} - {*GIVEN}):
        raise typer.BadParameter(f"--given {unknown[0]} is none of {', '.join(GIVEN)}")
    usual = EvalConfig()
    config = dataclasses.replace(
        usual,
        people=people or usual.people,
        concepts=concepts or usual.concepts,
        titles=titles or usual.titles,
        seed=seed,
        personalization=personalization,
    )
    rivals = {"liked_sft": liked_sft} if liked_sft else {}
    names = {name for name in contenders.split(",") if name}
    try:
        world = World.load(config, split, why, data or DATA, judges or CACHE)
        base = load_base(model / "base") if {1, 2}.intersection(stages) else None
        rungs = run.first_rungs(world, config, base, stages) if {0, 1, 2}.intersection(stages) else []
        if upper:
            bench = Bench.load(config, world, model, rivals)
            known = {*bench.contenders("both"), "reference"}
            if strange := sorted(names - known):
                raise ValueError(f"{strange[0]} is no contender; there are {', '.join(sorted(known))}")
            kept = (folder or CACHE / "runs") / run.fingerprint(model, rivals, config, split, judges or CACHE)
            rungs += run.upper_rungs(bench, kept, stages, settings, names)
            if sheet:
                run.sheet(bench, sheet)
    except (FileNotFoundError, ValueError) as error:
        typer.echo(f"icg eval: {error}", err=True)
        raise typer.Exit(2) from None
    facts = {"split": split, "concepts": str(len(world.concepts)), "people": str(config.people), "seed": str(seed)}
    facts |= versions("torch", "diffusers", "numpy")
    raise typer.Exit(0 if run.report(rungs, json_file, facts) else 1)


def branch(
    model: Annotated[
        Path, typer.Argument(help="Folder of base, mllm, adapter, rewards, space and preference.")
    ] = MODEL,
    json_file: JsonFile = None,
    picture: Annotated[Path | None, typer.Option(callback=_writable, help="And as SVG there.")] = None,
    write: Annotated[bool, typer.Option(help="Put the chosen point into the model's adapter/sampler.json.")] = False,
    at: Annotated[list[float] | None, typer.Option(min=0, max=1, help="Points to try; 0.1 to 0.9 by default.")] = None,
    people: Annotated[int | None, typer.Option(min=2, help="Held-out people.")] = None,
    concepts: Annotated[
        int | None, typer.Option(min=2, help="Validation concepts, evenly spaced; all by default.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The emoji parquet file.")] = None,
    judges: Annotated[Path | None, typer.Option(help="Folder of the trained judges.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where what was judged is kept.")] = None,
) -> None:
    """Choose on validation how many early steps an item's covers share: the latest point that keeps quality."""
    _there(model, ALL)
    from icg.evaluation import run
    from icg.evaluation.bench import Bench
    from icg.evaluation.branch import BRANCHES, LEAST_QUALITY, LEAST_RELEVANCE, draw_curve, save_curve, sweep
    from icg.evaluation.emoji import CACHE
    from icg.evaluation.report import machine, versions
    from icg.evaluation.world import EvalConfig, World
    from icg.tiny.files import DATA
    from icg.tuned import save_tuned

    usual = EvalConfig()
    config = dataclasses.replace(usual, people=people or usual.people, concepts=concepts or usual.concepts)
    try:
        world = World.load(config, "val", "", data or DATA, judges or CACHE)
        bench = Bench.load(config, world, model, {})
        kept = (folder or CACHE / "runs") / run.fingerprint(model, {}, config, "val", judges or CACHE)
        curve = sweep(bench, kept, at or BRANCHES)
    except (FileNotFoundError, ValueError) as error:
        typer.echo(f"icg branch: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo("branch  quality kept         relevance kept       evaluations")
    for point in curve.points:
        typer.echo(
            f"{point.branch:6.2f}  {_told(point.quality):19}  {_told(point.relevance):19}  {point.evaluations:.2f}"
        )
    if json_file:
        facts = {"people": str(config.people), "concepts": str(len(world.concepts))}
        save_curve(curve, json_file, machine() | facts | versions("torch", "diffusers", "numpy"))
    if picture and curve.gain.low > 0:
        draw_curve(curve, picture)
    if curve.chosen is None:
        why = (
            f"none of them keeps {LEAST_QUALITY:g} of the quality and {LEAST_RELEVANCE:g} of the relevance"
            if curve.gain.low > 0
            else f"there is nothing to keep: personal covers are liked no more than neutral ones ({_told(curve.gain)})"
        )
        typer.echo(f"icg branch: {why}", err=True)
        raise typer.Exit(1)
    typer.echo(f"chosen: {curve.chosen.branch:g}")
    if write:
        save_tuned(model / "adapter", dataclasses.replace(bench.generator.sampler, branch=curve.chosen.branch))


def _told(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _there(model: Path, parts: tuple[str, ...]) -> None:
    missing = [part for part in parts if not (model / part).is_dir()]
    if missing:
        raise typer.BadParameter(
            f"{model} has no {', '.join(missing)}: `icg init tiny {model}` makes the model folder of icg-tiny"
        )
