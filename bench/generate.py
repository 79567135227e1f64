"""Covers/s of ICG's shared sampling over stock diffusers at the cheapest setting that draws as well.

Both arms give the same people the same items from the same noise, with the same adapter's conditioning. ICG runs its
own loop, in which an item's segments share their early steps; the other arm is the stock pipeline, called once a cover
(`calls`) or with a whole batch of covers (`batch`), unguided or guided, with as few steps as still reach ICG's mean U
and hit on validation. Reading the item, denoising and decoding are counted in every arm. Reading happens once an item
in the stock arms, too, which favours them: a stock pipeline has no such cache.

    python bench/generate.py --model MODEL --json FILE --picture FILE.svg
    python bench/generate.py --full sd15 --json FILE     (random weights at full size, on a GPU: time and memory alone)

Where stock reaches them at no setting, the ratios are `speedup_vs_calls_at_stocks_best` and `..batch..` instead: ICG's
cheapest setting with at least the U and hit of stock's best over that one.

Where the model pleases nobody (untrained weights), "as well" has no meaning: then `speedup_vs_calls` and
`speedup_vs_batch` are no numbers, and only the ratios at equal steps are.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from bench.full_size import FULL, build, shrunk
from bench.stock import Stock
from icg.conditioning import StableDiffusion, StableDiffusionXL
from icg.evaluation.bench import Bench
from icg.evaluation.bootstrap import over_pairs
from icg.evaluation.cases import seeds
from icg.evaluation.chart import chart
from icg.evaluation.contenders import Case, Contender, Reader, neutral, user
from icg.evaluation.emoji import CACHE
from icg.evaluation.figures import quality_kept
from icg.evaluation.panel import Measured
from icg.evaluation.report import Figure, report, versions
from icg.evaluation.world import EvalConfig, World
from icg.generator import CoverGenerator
from icg.loading import quietly
from icg.sampling import SamplerConfig
from icg.tiny.files import DATA
from icg.tuned import tuned

TITLES = ("a lantern at night", "a red boat", "the old owl", "a slice of cake", "two whales", "a paper plane")
WANTED = {"speedup_vs_calls": 4.0, "speedup_vs_batch": 2.5, "quality_kept": 0.90}
NEARLY = 0.9  # of the highest hit: a setting with less is not the best, whatever its U
ROUNDS = 3  # of the arms that are compared, in turns
TIMED = 12  # items that are drawn in each turn; how good covers are wants more of them than how fast


@dataclass(frozen=True)
class Workload:
    """The same for every arm. `judge` says what the covers are like, where somebody can tell."""

    items: list[Case]
    people: list[Reader]
    seeds: list[int]
    judge: Callable[[Contender], Measured] | None

    @property
    def covers(self) -> int:
        return len(self.items) * len(self.people)

    def first(self, items: int) -> Workload:
        return dataclasses.replace(self, items=self.items[:items], seeds=self.seeds[:items])


@dataclass(frozen=True)
class Tried:
    """One setting of the stock pipeline, or of ICG, and what came of it."""

    name: str
    make: Callable[[], Contender]
    rate: float  # covers/s, of one drawing
    utility: float  # mean U
    hit: float  # share of titles in the top 5


def rate_of(make: Callable[[], Contender], work: Workload) -> float:
    """Covers/s, everything counted; `make` gives a fresh contender, so that nothing is remembered.

    What is drawn ends on the CPU, so the clock stops when a GPU is done.
    """
    return work.covers / make().draw(work.items, work.people, work.seeds).seconds


def tried(name: str, make: Callable[[], Contender], work: Workload) -> Tried:
    assert work.judge is not None
    seen = work.judge(make())
    found = Tried(name, make, work.covers / seen.seconds, float(seen.utility.mean()), float(seen.hit.mean()))
    print(f"{name}: {found.rate:.2f} covers/s, U {found.utility:.4f}, hit {found.hit:.3f}", file=sys.stderr, flush=True)
    return found


def fresh(generator: CoverGenerator, **changes: object) -> CoverGenerator:
    """The same weights under another sampler, with nothing read yet."""
    sampler = dataclasses.replace(generator.sampler, **changes)
    return CoverGenerator(generator.base, generator.mllm, generator.adapter, sampler)


def equal_steps(own: CoverGenerator, work: Workload, batches: Sequence[int]) -> list[Figure]:
    """The speed figures at equal steps, which need no judge: the arms take turns, ratios are medians of the rounds."""
    sampler = own.sampler
    arms: dict[str, Callable[[], Contender]] = {
        f"icg-{b}": lambda b=b: user(fresh(own, slots=b, guidance=1.0)) for b in batches
    }
    arms |= {"calls": lambda: Stock(own, sampler.steps, 1.0, 1)}
    arms |= {f"batch-{b}": lambda b=b: Stock(own, sampler.steps, 1.0, b) for b in batches}
    return turns(arms, work, "_equal_steps", f"both at {sampler.steps} steps, unguided")


def turns(arms: dict[str, Callable[[], Contender]], work: Workload, suffix: str, note: str) -> list[Figure]:
    """Arms named icg-N, calls and batch-N; of the sizes N each arm has its own best."""
    work, single = work.first(TIMED), work.first(1)
    for make in arms.values():  # to warm up, and torch.compile compiles
        rate_of(make, single)
    rounds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, make in arms.items():
            rounds[name].append(rate_of(make, work))

    def fastest(kind: str) -> str:
        return max((name for name in arms if name.startswith(kind)), key=lambda name: statistics.median(rounds[name]))

    icg, batch = fastest("icg"), fastest("batch")
    made = []
    for kind, name in (("calls", "calls"), ("batch", batch)):
        ratios = [a / b for a, b in zip(rounds[icg], rounds[name], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {ROUNDS} turns; {icg} over {name}"
        figure, least = f"speedup_vs_{kind}", None if suffix else WANTED[f"speedup_vs_{kind}"]
        made.append(Figure(figure + suffix, statistics.median(ratios), least, note=f"{note}; {spread}"))
    for kind, name in (("icg", icg), ("calls", "calls"), ("batch", batch)):
        made.append(Figure(f"covers_per_second_{kind}{suffix}", statistics.median(rounds[name]), note=name))
    return made


def as_good(
    own: CoverGenerator, work: Workload, chance: float, batch: int, steps: Sequence[int], guided: float
) -> tuple[list[Figure], dict[str, list[Tried]]]:
    """What sharing keeps, and the speed over stock's cheapest setting that reaches ICG's mean U and hit.

    Returns:
        Figures, and every setting tried by name of its curve.
    """
    assert work.judge is not None
    plain, icg = work.judge(neutral(fresh(own))), work.judge(user(fresh(own)))
    full = work.judge(user(fresh(own, branch=0.0))) if own.sampler.branch else icg
    gain, hit = over_pairs(full.utility - plain.utility), over_pairs(full.hit.astype(float))
    curves = {
        f"stock diffusers, guidance {g:g}": [
            tried(f"{n} steps", lambda n=n, g=g: Stock(own, n, g, batch), work) for n in steps
        ]
        for g in ((1.0, guided) if Stock.can_guide(own) else (1.0,))
    }
    stocks = [one for some in curves.values() for one in some]
    shared = f"ICG, {own.sampler.branch:g} of the steps shared"
    curves[shared] = [tried(f"{n} steps", lambda n=n: user(fresh(own, steps=n)), work) for n in steps]
    made = [
        Figure("gain_over_neutral", gain.value, note=f"U, nothing shared: {gain.low:.4f} to {gain.high:.4f}"),
        Figure("hit", hit.value, note=f"nothing shared: {hit.low:.3f} to {hit.high:.3f}, chance {chance:.3f}"),
    ]
    if gain.low <= 0 or hit.low <= chance:
        why = "no better than neutral or than chance (untrained?): quality figures mean nothing yet"
        return [
            *made,
            *void("quality_kept", why),
            *void("speedup_vs_calls", why),
            *void("speedup_vs_batch", why),
        ], curves
    kept = quality_kept(icg.utility, full.utility, plain.utility)
    shares = f"{kept.low:.2f} to {kept.high:.2f}, same seeds" if full is not icg else "nothing is shared"
    made += [
        Figure("quality_kept", kept.value, WANTED["quality_kept"], note=shares),
        Figure("utility_icg", float(icg.utility.mean())),
        Figure("hit_icg", float(icg.hit.mean())),
    ]
    ours = Tried("", lambda: user(fresh(own)), work.covers / icg.seconds, icg.utility.mean(), icg.hit.mean())
    return made + speedup(own, work, batch, ours, stocks, curves[shared]), curves


def speedup(
    own: CoverGenerator, work: Workload, batch: int, ours: Tried, stocks: Sequence[Tried], curve: Sequence[Tried]
) -> list[Figure]:
    """Over stock's cheapest setting that is as good as `ours`; where none is, of ICG's `curve` over stock's best."""
    stock, suffix, made = cheapest(stocks, ours.utility, ours.hit), "", []
    if stock is None:
        why = "stock reaches this U and hit at none of the settings that were tried"
        made = [*void("speedup_vs_calls", why), *void("speedup_vs_batch", why)]
        stock, suffix = best(stocks), "_at_stocks_best"
        enough = cheapest(curve, stock.utility, stock.hit)
        if enough is None:
            return made
        ours = enough
    drawn = stock.make()
    assert isinstance(drawn, Stock)
    arms = {
        f"icg-{batch}": ours.make,
        "calls": lambda: Stock(own, drawn.steps, drawn.guidance, 1),
        f"batch-{batch}": stock.make,
    }
    at = f"stock at {drawn.steps} steps, guidance {drawn.guidance:g}, U {stock.utility:.2f}, hit {stock.hit:.2f}"
    return made + turns(arms, work, suffix, f"{at}; ICG's {ours.utility:.2f} and {ours.hit:.2f}")


def cheapest(settings: Sequence[Tried], utility: float, hit: float) -> Tried | None:
    """The fastest of the settings whose mean U and hit are at least so high."""
    enough = [one for one in settings if one.utility >= utility and one.hit >= hit]
    return max(enough, key=lambda one: one.rate, default=None)


def best(settings: Sequence[Tried]) -> Tried:
    """The highest mean U among the settings that hit nearly as often as any."""
    least = NEARLY * max(one.hit for one in settings)
    return max((one for one in settings if one.hit >= least), key=lambda one: one.utility)


def void(name: str, why: str) -> list[Figure]:
    """A figure that there is not: it counts as missed."""
    return [Figure(name, float("nan"), WANTED[name], note=why)]


def memory(own: CoverGenerator, work: Workload, batch: int) -> list[Figure]:
    """Peak of torch's allocations in each arm, weights included."""
    made = []
    for name, make in (("icg", lambda: user(fresh(own))), ("batch", lambda: Stock(own, own.sampler.steps, 1.0, batch))):
        torch.cuda.reset_peak_memory_stats()
        make().draw(work.items[:1], work.people, work.seeds[:1])
        made.append(Figure(f"peak_gib_{name}", torch.cuda.max_memory_allocated() / 2**30, note="weights included"))
    return made


def timed_only(generator: CoverGenerator, items: int, segments: int) -> Workload:
    """Titles and random vectors, nobody to judge."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(segments, generator.dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    people = [Reader(k, vector, vector, vector) for k, vector in enumerate(vectors)]
    cases = [Case(f"c{k}", 0, f"{TITLES[k % len(TITLES)]} {k // len(TITLES) or ''}".strip()) for k in range(items)]
    return Workload(cases, people, seeds(cases, 0), None)


def judged(model: Path, items: int, segments: int, data: Path, judges: Path) -> tuple[Workload, float]:
    """Validation concepts for held-out people."""
    config = EvalConfig(people=segments, concepts=items)
    world = World.load(config, "val", data=data, judges=judges)
    bench = Bench.load(config, world, model, {})
    cases, _ = bench.items("title")
    noise = seeds(cases, 0)

    def judge(contender: Contender) -> Measured:
        return world.panel.judge(contender.draw(cases, bench.people, noise), cases, bench.people, {})

    return Workload(cases, bench.people, noise, judge), world.panel.titles.chance


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, help="model folder")
    which.add_argument("--full", choices=sorted(FULL), help="random weights at full size; wants a GPU")
    parser.add_argument("--mllm", type=Path, help="with --full: the folder of what reads the items; icg-tiny's without")
    parser.add_argument("--shrink", action="store_true", help="with --full: the same blocks, narrow, also on a CPU")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="SVG: U over covers/s of both arms")
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--steps", type=int, help="ICG's; the model's own by default")
    parser.add_argument(
        "--branch", type=float, help="share of ICG's steps that segments have in common; 0.5 with --full"
    )
    parser.add_argument("--stock-steps", type=int, nargs="+", default=[5, 8, 10, 12, 15, 20, 25])
    parser.add_argument("--guidance", type=float, default=3.0, help="of the guided stock settings")
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="slots of ICG and batches of stock")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile of denoiser and decoder, in both arms")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--speed-only", action="store_true", help="no judges, equal steps alone")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--judges", type=Path, default=CACHE)
    given = parser.parse_args()
    for file in filter(None, (given.json, given.picture)):
        if file.is_dir():
            parser.error(f"{file} is a directory, a file is wanted")
    for name in ("items", "segments", "threads"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} is {getattr(given, name)}, at least 1 is wanted")
    gpu = torch.cuda.is_available()
    if given.full and not gpu and not given.shrink:
        print("bench/generate.py: --full wants a GPU, and torch sees none here", file=sys.stderr)
        return 2
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    try:
        return measure(given, "cuda" if gpu else "cpu")
    except (OSError, ValueError) as error:
        print(f"bench/generate.py: {error}", file=sys.stderr)
        return 2


def measure(given: argparse.Namespace, device: str) -> int:
    dtype = given.dtype or ("bfloat16" if given.full else "float32")
    asked = {"steps": given.steps, "branch": given.branch, "dtype": dtype, "slots": given.batch[0]}
    if given.full:
        full = shrunk(FULL[given.full]) if given.shrink else FULL[given.full]
        decided = {"branch": 0.5} | {name: value for name, value in asked.items() if value is not None}
        sampler = SamplerConfig(**decided, width=full.pixels, height=full.pixels)
        with quietly():
            generator = build(full, given.mllm, device, sampler)
    else:
        sampler = tuned(given.model / "adapter", **asked)
        generator = CoverGenerator.from_pretrained(given.model, device=device, sampler=sampler)
    if not isinstance(generator.base, (StableDiffusion, StableDiffusionXL)):
        raise ValueError(f"the stock arm drives Stable Diffusion and XL, not {type(generator.base).__name__}")
    if given.compile:
        generator.base.denoiser.compile()
        generator.base.vae.decoder.compile()
    judges = not (given.full or given.speed_only)
    if judges:
        work, chance = judged(given.model, given.items, given.segments, given.data, given.judges)
    else:
        work, chance = timed_only(generator, given.items, given.segments), float("nan")
    figures = equal_steps(generator, work, given.batch)
    if judges:
        quality, points = as_good(generator, work, chance, given.batch[0], given.stock_steps, given.guidance)
        figures = quality + figures
        if given.picture:
            series = {name: [(one.rate, one.utility, one.name) for one in some] for name, some in points.items()}
            chart(given.picture, "U of covers against their speed", "covers/s", "mean U", series)
    if device == "cuda":
        figures += memory(generator, work, given.batch[0])
    facts = versions("torch", "diffusers") | {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "compile": given.compile,
        "steps": generator.sampler.steps,
        "branch": generator.sampler.branch,
        "covers": work.covers,
    }
    return 0 if report("bench/generate.py", figures, given.json, facts) else 1


if __name__ == "__main__":
    sys.exit(main())
