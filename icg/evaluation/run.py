"""Evaluate a model directory: `python -m icg.evaluation.run DIRECTORY --json FILE`.

Draws with every contender, asks the judges, prints the ladder and writes the figures. What was drawn and judged is kept
by the hash of model, code and settings, so an interrupted run goes on. Validation is the default; `--split test` is for
reporting and is written to the log of looks.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from icg.evaluation import compare, ladder
from icg.evaluation.cases import GIVEN, Given, cases, readers, seeds
from icg.evaluation.contenders import (
    BestOfShared,
    Case,
    Contender,
    Drawn,
    FilteredNeutral,
    InferredPrompt,
    Oracle,
    Planted,
    PromptOracle,
    Reader,
    ReferenceImage,
    mismatched,
    neutral,
    random_embedding,
    segment,
    user,
)
from icg.evaluation.contenders.best_of import Prefer
from icg.evaluation.contenders.prompted import Vocabulary, painter
from icg.evaluation.emoji import CACHE, Gallery, far_concepts, gallery, keywords_of
from icg.evaluation.figures import Row
from icg.evaluation.panel import Measured, Panel
from icg.evaluation.people import Floats
from icg.evaluation.study import Study, StudyConfig, study
from icg.evaluation.utility import Utility
from icg.generator import CoverGenerator
from icg.rewards import Judge
from icg.tiny.files import DATA, write_whole
from icg.tiny.pixels import save_sheet


@dataclass(frozen=True)
class EvalConfig:
    """Chosen on validation, committed, and then used once on the test split."""

    people: int = 24  # held-out people
    concepts: int = 0  # held-out concepts, evenly spaced; 0: all
    oracle_concepts: int = 24  # of these, the first, for the best of 64
    oracle: int = 64  # covers that the oracle chooses among
    practice: int = 12  # validation items on which filters are chosen
    titles: int = 100  # seen and unseen titles that the base is asked for on its rung
    guidance: float = 3.0  # of the base told prompts
    precision: float = 1.0  # of the estimate of a person's vector
    seed: int = 0
    study: StudyConfig = dataclasses.field(default_factory=StudyConfig)


@dataclass
class Bench:
    """All that is needed to draw and to judge."""

    config: EvalConfig
    generator: CoverGenerator
    prefer: Prefer  # the stack's own preference model
    study: Study
    panel: Panel
    concepts: list[str]
    people: list[Reader]
    avoid: list[frozenset[str]]
    practice: Gallery
    rivals: dict[str, CoverGenerator]

    def contenders(self, given: Given) -> Iterator[Contender]:
        """Everybody where title and reference are given; those that the other settings are about elsewhere."""
        sampler = self.generator.sampler
        plain = neutral(self.generator)
        yield plain
        yield neutral(self.generator, compare.AGAIN)
        yield user(self.generator)
        yield mismatched(self.generator)
        if given != "title":
            yield ReferenceImage()
        if given != "both":
            return
        yield segment(self.generator)
        yield random_embedding(self.generator)
        yield user(self._unshared(), compare.FULL)
        for name, rival in self.rivals.items():
            yield user(rival, name)
        yield Planted(self.panel.gallery, self.panel.utility)
        yield BestOfShared(self.generator, self.prefer)
        yield BestOfShared(self.generator, self.prefer, None)
        concepts = self.practice.concepts()[: self.config.practice]
        items, _ = cases(self.practice, concepts, "title", [r.number for r in self.people], self.avoid)
        yield FilteredNeutral(plain, self.panel.utility, items, seeds(items, self.config.seed))
        vocabulary = Vocabulary.of(self.study.train)
        paint = painter(self.generator.base)
        guided = dataclasses.replace(sampler, branch=0.0, guidance=self.config.guidance)
        yield InferredPrompt(paint, vocabulary, guided)
        yield PromptOracle(paint, vocabulary, guided, self.panel.utility, self.study.train)
        yield Oracle(self.generator, self.panel.utility, self.config.oracle)

    def _unshared(self) -> CoverGenerator:
        sampler = dataclasses.replace(self.generator.sampler, branch=0.0)
        return CoverGenerator(self.generator.base, self.generator.mllm, self.generator.adapter, sampler)


def prepare(
    model: Path,
    config: EvalConfig,
    split: str,
    why: str,
    rivals: dict[str, Path],
    data: Path = DATA,
    judges: Path = CACHE,
) -> Bench:
    """Load everything.

    Args:
        rivals: further adapters of the same base and MLLM, by name, such as {"liked_sft": folder}.
    """
    train, val = gallery("train", data=data), gallery("val", data=data)
    held = gallery("test", data=data, why=why) if split == "test" else val
    made = study(train, config.study)
    within = made.standardise.joined(val.raw, val.pictures.concepts).joined(held.raw, held.pictures.concepts)
    utility = Utility(made.people, within)
    panel = Panel.load(held, utility, keywords_of(data), judges)
    generator = CoverGenerator.from_pretrained(model)
    judge = Judge.from_parts(model / "rewards", model / "space", model / "preference")
    embeddings = judge.embed([train.image(row) for row in range(len(train))])
    people = readers(made, embeddings, judge.head, count=config.people, precision=config.precision)
    standardised = made.standardise.each(train.raw, train.pictures.concepts)
    concepts = held.concepts()
    if split == "test":
        concepts = far_concepts(held, sorted({*train.pictures.titles.tolist(), *val.pictures.titles.tolist()}))
    if config.concepts:
        concepts = [concepts[k] for k in np.linspace(0, len(concepts) - 1, config.concepts).astype(int)]
    others = {name: _with_adapter(generator, folder) for name, folder in rivals.items()}
    avoid = [made.top_families(standardised, reader.number) for reader in people]

    def prefer(users: Sequence[Reader], images: Sequence[Image.Image]) -> Floats:
        return np.asarray(judge.prefer(np.stack([reader.vector for reader in users]), judge.embed(images)), float)

    return Bench(config, generator, prefer, made, panel, concepts, people, avoid, val, others)


def _with_adapter(generator: CoverGenerator, folder: Path) -> CoverGenerator:
    other = CoverGenerator(generator.base, generator.mllm, generator.adapter, generator.sampler)
    other.load_adapter(folder)
    return other


def measure(bench: Bench, given: Given, folder: Path) -> dict[str, Measured]:
    """Draw and judge every contender of a setting; what is in `folder` already is read from there."""
    numbers = [reader.number for reader in bench.people]
    items, references = cases(bench.panel.gallery, bench.concepts, given, numbers, bench.avoid, bench.config.seed)
    found = {}
    for contender in bench.contenders(given):
        kept = folder / f"{given}-{contender.name}.npz"
        if not kept.exists():
            some = items[: bench.config.oracle_concepts] if contender.name == "oracle" else items
            shown = {key: row for key, row in references.items() if key[0] < len(some)}
            again = 1 if contender.name == compare.AGAIN else 0
            drawn = contender.draw(some, bench.people, seeds(some, 2 * bench.config.seed + again))
            store(kept, bench.panel.judge(drawn, some, bench.people, shown))
            print(f"{given}: {contender.name}, {drawn.seconds:.0f} s", file=sys.stderr, flush=True)
        found[contender.name] = restore(kept)
    return found


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
        values["hit_words"],
        values["group"],
        values.get("copies"),
        values["features"].astype(np.float64),
        int(values["evaluations"]),
        float(values["seconds"]),
    )


def first_rungs(bench: Bench) -> list[tuple[int, str, list[Row]]]:
    """Rungs 0 to 2."""
    panel, config = bench.panel, bench.config
    pixels = panel.gallery.pictures.pixels
    real = ladder.sight(panel, pixels, bench.study.held_out)
    back = ladder.sight(panel, ladder.round_trip(bench.generator.base, pixels), bench.study.held_out)
    train = bench.study.train
    some = train.where(np.arange(0, len(train), 10))
    seen_real = float((panel.relevance.look(some.pictures.pixels).groups == some.topics).mean())
    guided = dataclasses.replace(bench.generator.sampler, branch=0.0, guidance=config.guidance)
    drawn = ladder.base_rung(
        panel, painter(bench.generator.base), guided, train, panel.gallery, config.titles, (seen_real, real.group)
    )
    chance = panel.titles.chance
    return [
        (0, "judges", ladder.judges(real, chance)),
        (1, "autoencoder", ladder.autoencoder(real, back, chance)),
        (2, "base", drawn),
    ]


def guided_titles(bench: Bench, items: list[Case]) -> Measured:
    """The base told the bare titles, guided: what warm-up is held to."""
    paint = painter(bench.generator.base)
    sampler = dataclasses.replace(bench.generator.sampler, branch=0.0, guidance=bench.config.guidance)
    one = bench.people[:1]
    images = [paint([case.title or ""], [seed], sampler) for case, seed in zip(items, seeds(items, 0), strict=True)]
    return bench.panel.judge(Drawn(images, 0, 0.0), items, one, {})


def evaluate(bench: Bench, folder: Path, given: tuple[Given, ...] = GIVEN) -> list[tuple[int, str, list[Row]]]:
    """The ladder's rows."""
    rungs = first_rungs(bench)
    chance = bench.panel.titles.chance
    found = {one: measure(bench, one, folder) for one in given}
    if "title" in found:
        numbers = [reader.number for reader in bench.people]
        items, _ = cases(bench.panel.gallery, bench.concepts, "title", numbers, bench.avoid, bench.config.seed)
        plain = found["title"]["neutral"]
        first = dataclasses.replace(plain, hit=plain.hit[:1])
        rungs.append((3, "warm-up", ladder.warm_up(first, guided_titles(bench, items), chance)))
    gallery = bench.panel.gallery
    real = bench.panel.relevance.look(
        gallery.pictures.pixels[np.isin(gallery.pictures.concepts, bench.concepts)]
    ).features
    for one, measured in found.items():
        suffix = "" if one == "both" else f"_{one}"
        made = [
            *compare.a_a(measured, suffix),
            *compare.wins(measured, suffix=suffix),
            *compare.quality(measured, real, chance, suffix=suffix),
            *compare.cost(measured, suffix),
        ]
        rungs.append((5, one, made))
    if "both" in found and "wrong_reference" in found:
        rungs.append((5, "wrong ref.", compare.wrong_reference(found["both"], found["wrong_reference"])))
    return rungs


def sheet(bench: Bench, path: Path, titles: int = 12, people: int = 8) -> None:
    """Contact sheet: a row a title, first the neutral cover, then one for each of some people."""
    some = bench.people[:people]
    concepts = [bench.concepts[k] for k in np.linspace(0, len(bench.concepts) - 1, titles).astype(int)]
    items, _ = cases(bench.panel.gallery, concepts, "title", [r.number for r in some], bench.avoid)
    noise = seeds(items, 0)
    plain = neutral(bench.generator).draw(items, some[:1], noise).images
    own = user(bench.generator).draw(items, some, noise).images
    covers = [np.asarray(image.resize((64, 64))) for i in range(len(items)) for image in [*plain[i], *own[i]]]
    save_sheet(np.stack(covers), 1 + len(some), path)


def report(rungs: list[tuple[int, str, list[Row]]], path: Path | None, facts: dict[str, str]) -> bool:
    """Print the ladder, write the JSON of the other benches, and say whether all that is wanted was reached."""
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    every = [row for _, _, made in rungs for row in made]
    marks = {None: "", True: "[green]reached", False: "[red]missed"}
    table = Table(title="icg eval, simulated people", caption=", ".join(f"{k} {v}" for k, v in facts.items()))
    for column in ("figure", "measured", "wanted", "", "how"):
        table.add_column(column)
    for row in every:
        bounds = [f">= {row.least:g}"] if row.least is not None else []
        bounds += [f"<= {row.most:g}"] if row.most is not None else []
        table.add_row(row.name, f"{row.value:.4g}", ", ".join(bounds), marks[row.reached], escape(row.note))
    console.print(table)
    for number, name, made in rungs:
        console.print(ladder.line(number, name, made), highlight=False)
    if path is not None:
        values = {row.name: row.value if np.isfinite(row.value) else None for row in every}
        body = json.dumps({"figures": values, "machine": facts}, indent=2) + "\n"
        write_whole(path, lambda partial: partial.write_text(body))
    return all(row.reached is not False for row in every)


def fingerprint(model: Path, rivals: dict[str, Path], config: EvalConfig, split: str, judges: Path) -> str:
    """Of all that decides what was drawn and judged."""
    folders = [model, *rivals.values(), judges / "relevance", judges / "second", Path(__file__).parent]
    digest = hashlib.sha256(f"{config} {split} {sorted(rivals)}".encode())
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in {".safetensors", ".py"} or path.name.endswith("config.json"):
                digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="directory of base, mllm, adapter, rewards, space and preference")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="PNG: 12 titles, neutral and 8 people")
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--why", default="", help="reason of a look at the test split, for its log")
    parser.add_argument("--given", choices=GIVEN, nargs="+", default=list(GIVEN))
    parser.add_argument("--liked-sft", type=Path, help="adapter folder of that contender")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--judges", type=Path, default=CACHE, help="folder of the trained judges")
    parser.add_argument("--folder", type=Path, default=CACHE / "runs", help="where what was judged is kept")
    for name in ("people", "concepts", "oracle-concepts", "oracle", "practice", "titles"):
        parser.add_argument(f"--{name}", type=int, default=getattr(EvalConfig(), name.replace("-", "_")))
    given = parser.parse_args()
    config = EvalConfig(given.people, given.concepts, given.oracle_concepts, given.oracle, given.practice, given.titles)
    rivals = {"liked_sft": given.liked_sft} if given.liked_sft else {}
    try:
        bench = prepare(given.model, config, given.split, given.why, rivals, given.data, given.judges)
    except (FileNotFoundError, ValueError) as error:
        print(f"icg eval: {error}", file=sys.stderr)
        return 2
    folder = given.folder / fingerprint(given.model, rivals, config, given.split, given.judges)
    rungs = evaluate(bench, folder, tuple(given.given))
    if given.sheet:
        sheet(bench, given.sheet)
    facts = {"split": given.split, "people": str(config.people), "python": platform.python_version()}
    facts |= {name: version(name) for name in ("torch", "diffusers", "numpy")}
    return 0 if report(rungs, given.json, facts) else 1


if __name__ == "__main__":
    sys.exit(main())
