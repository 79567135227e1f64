"""The ladder of a model directory: draw with every contender, ask the judges, say what was reached.

What was drawn and judged is kept by the hash of model, code and settings, so an interrupted run goes on. `icg eval` is
this module's command.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from icg.conditioning import Base
from icg.evaluation import compare, ladder
from icg.evaluation import report as reports
from icg.evaluation.bench import Bench
from icg.evaluation.cases import GIVEN, Given, seeds
from icg.evaluation.contenders import Case, Contender, Drawn, neutral, user
from icg.evaluation.contenders.prompted import painter
from icg.evaluation.panel import Measured
from icg.evaluation.report import Figure
from icg.evaluation.world import EvalConfig, World
from icg.sampling import SamplerConfig
from icg.tiny.files import write_whole
from icg.tiny.pixels import save_sheet

Rung = tuple[int, str, list[Figure]]
"""Number on the ladder, what it is about, its figures."""

CODE = Path(__file__).resolve().parents[1]

STAGES = (0, 1, 2, 3, 4, 5, 6)
ALWAYS = ("neutral", compare.AGAIN, "icg", compare.OWN_AGAIN)
"""Without these there is nothing to compare with."""


def first_rungs(
    world: World,
    config: EvalConfig,
    base: Base | None,
    stages: Collection[int] = STAGES,
    sampler: SamplerConfig | None = None,
) -> list[Rung]:
    """Rungs 0 to 2, which need no adapter; rung 0 no base either."""
    panel, study = world.panel, world.study
    pixels = panel.gallery.pictures.pixels
    real = ladder.sight(panel, pixels, study.held_out)
    chance = panel.titles.chance
    rungs: list[Rung] = []
    if 0 in stages:
        rungs.append((0, "judges", ladder.judges(real, chance)))
    if 1 in stages and base is not None:
        back = ladder.sight(panel, ladder.round_trip(base, pixels), study.held_out)
        rungs.append((1, "autoencoder", ladder.autoencoder(real, back, chance)))
    if 2 in stages and base is not None:
        train = study.train
        some = train.where(np.arange(0, len(train), 10))
        seen = float((panel.relevance.look(some.pictures.pixels).groups == some.topics).mean())
        guided = dataclasses.replace(sampler or SamplerConfig(), branch=0.0, guidance=config.guidance)
        real_groups = (seen, real.group)
        made = ladder.base_rung(panel, painter(base), guided, train, panel.gallery, config.titles, real_groups)
        rungs.append((2, "base", made))
    return rungs


def upper_rungs(
    bench: Bench,
    folder: Path,
    stages: Collection[int] = STAGES,
    given: Sequence[Given] = GIVEN,
    contenders: Collection[str] = (),
) -> list[Rung]:
    """Rungs 3 to 6: warm-up, liked-SFT, everything against everybody, fast sampling.

    Args:
        folder: where what was drawn and judged is kept.
        contenders: on rung 5 these alone, and what every comparison needs; empty: all.
    """
    rungs: list[Rung] = []
    chance = bench.world.panel.titles.chance
    if 3 in stages:
        plain = measure(bench, "title", folder, {"neutral"})["neutral"]
        first = dataclasses.replace(plain, hit=plain.hit[:1])
        rungs.append((3, "warm-up", ladder.warm_up(first, guided_titles(bench), chance)))
    if 4 in stages and "liked_sft" in bench.rivals:
        found = measure(bench, "both", folder, {"neutral", "liked_sft"})
        rungs.append((4, "liked-SFT", compare.rival("liked_sft", found, chance)))
    if 5 in stages:
        rungs += _everybody(bench, folder, given, contenders)
    if 6 in stages:
        found = measure(bench, "both", folder, {"neutral", compare.FAST, compare.FULL})
        found.setdefault(compare.FULL, found[compare.FAST])  # where nothing is shared it is not drawn again
        rungs.append((6, "fast sampling", compare.fast(found, chance)))
    return rungs


def _everybody(bench: Bench, folder: Path, given: Sequence[Given], contenders: Collection[str]) -> list[Rung]:
    panel = bench.world.panel
    drawn_of = np.isin(panel.gallery.pictures.concepts, bench.world.concepts)
    real = panel.relevance.look(panel.gallery.pictures.pixels[drawn_of]).features
    chance = panel.titles.chance
    only = {*contenders, *ALWAYS} if contenders else None
    found = {one: measure(bench, one, folder, only) for one in given}
    rungs: list[Rung] = []
    for one, measured in found.items():
        suffix = "" if one == "both" else f"_{one}"
        made = [
            *compare.a_a(measured, suffix),
            *compare.wins(measured, suffix=suffix),
            *compare.quality(measured, real, chance, suffix=suffix),
            *compare.cost(measured, suffix),
        ]
        for name in measured:
            if name not in {*ALWAYS, compare.FULL}:
                made += compare.rival(name, measured, chance, suffix)
        rungs.append((5, one, made))
    if "both" in found and "wrong_reference" in found:
        rungs.append((5, "wrong ref.", compare.wrong_reference(found["both"], found["wrong_reference"])))
    return rungs


def measure(bench: Bench, given: Given, folder: Path, only: Collection[str] | None = None) -> dict[str, Measured]:
    """Draw and judge contenders of a setting; what is in `folder` already is read from there.

    Args:
        only: names; None: all.
    """
    return {
        name: measured(bench, given, name, folder) for name in bench.contenders(given) if only is None or name in only
    }


def measured(
    bench: Bench, given: Given, name: str, folder: Path, make: Callable[[], Contender] | None = None
) -> Measured:
    """Draw and judge one contender, or read it back.

    Args:
        make: gives the contender; None: the bench's own of that name.
    """
    kept = folder / f"{given}-{name}.npz"
    if not kept.exists():
        items, references = bench.items(given)
        some = items[: bench.config.oracle_concepts] if name == "oracle" else items
        noise = seeds(some, bench.config.seed)
        turns = {compare.AGAIN: 2 * bench.config.pairs, compare.OWN_AGAIN: bench.config.turns}.get(name)
        if turns is not None:
            some, noise = compare.again(items, turns)
        shown = {
            (turn + i, k): row
            for turn in range(0, len(some), len(items))
            for (i, k), row in references.items()
            if turn + i < len(some)
        }
        contender = (make or bench.contenders(given)[name])()
        drawn = contender.draw(some, bench.people, noise)
        store(kept, bench.world.panel.judge(drawn, some, bench.people, shown))
        print(f"{given}: {name}, {drawn.seconds:.0f} s", file=sys.stderr, flush=True)
    return restore(kept)


def store(path: Path, measured: Measured) -> None:
    fields = {name: value for name, value in vars(measured).items() if value is not None}
    # features are the bulk of it: half precision is plenty for distances
    fields["features"] = measured.features.astype(np.float16)
    write_whole(path, lambda partial: np.savez_compressed(partial, **fields))


def restore(path: Path) -> Measured:
    with np.load(path) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    return Measured(
        values["utility"],
        values.get("second"),
        values["hit"],
        values["hit_first"],
        values["hit_pixels"],
        values["hit_words"],
        values["group"],
        values.get("copies"),
        values["features"].astype(np.float64),
        int(values["evaluations"]),
        float(values["seconds"]),
    )


def guided_titles(bench: Bench) -> Measured:
    """The base told the bare titles, guided: what warm-up is held to."""
    items, _ = bench.items("title")
    paint = painter(bench.generator.base)
    one = bench.people[:1]
    noise = seeds(items, bench.config.seed)
    images = [paint([case.title or ""], [seed], bench.guided) for case, seed in zip(items, noise, strict=True)]
    return bench.world.panel.judge(Drawn(images, 0, 0.0), items, one, {})


def sheet(bench: Bench, path: Path, titles: int = 12, people: int = 8) -> None:
    """Contact sheet: a row a title, first the neutral cover, then one for each of some people."""
    some = bench.people[:people]
    items, _ = bench.items("title")
    shown: list[Case] = [items[k] for k in np.linspace(0, len(items) - 1, titles).astype(int)]
    noise = seeds(shown, 0)
    plain = neutral(bench.generator).draw(shown, some[:1], noise).images
    own = user(bench.generator).draw(shown, some, noise).images
    covers = [np.asarray(image.resize((64, 64))) for i in range(len(shown)) for image in [*plain[i], *own[i]]]
    save_sheet(np.stack(covers), 1 + len(some), path)


def report(rungs: Sequence[Rung], path: Path | None, facts: dict[str, str]) -> bool:
    """Print figures and ladder, write the JSON of the other benches, and say whether all that is wanted was reached."""
    good = reports.report("icg eval, simulated people", [one for _, _, made in rungs for one in made], path, facts)
    for number, name, made in rungs:
        print(ladder.line(number, name, made))
    return good


def fingerprint(
    model: Path, rivals: dict[str, Path], config: EvalConfig, split: str, judges: Path, code: Path = CODE
) -> str:
    """Of all that decides what was drawn and judged.

    Args:
        code: the library: sampling and adapter decide what is drawn as much as the contenders here do.
    """
    digest = hashlib.sha256(f"{config} {split} {sorted(rivals)}".encode())
    part = (".safetensors", "config.json", "sampler.json")
    seen = dict.fromkeys([model, *rivals.values(), judges / "relevance", judges / "second"], part) | {code: (".py",)}
    for folder, wanted in seen.items():
        for path in sorted(folder.rglob("*")):
            if path.name.endswith(wanted):
                digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
