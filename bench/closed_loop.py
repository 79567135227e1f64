"""Does learning from clicks raise clicks? `python bench/closed_loop.py [--model DIR] [--planted] [--json FILE]`.

Simulated people (`icg.evaluation.audience`) read pages of an unseen catalogue. Every page is shown by every arm, to the
same person with the same items and noise; the learner is told of one of them, drawn at random:

    neutral      the cover of nobody in particular
    random       any of the item's covers, one a segment and the neutral one
    best_of_8    the best of eight shared covers, chosen and learned as `personal`
    personal     the best of the item's covers, by policy, under the head and the tastes that are learned meanwhile
    frozen       the same under revision 0 and the imported embeddings, for ever
    oracle       the best of all covers by true taste

Revision 0 is the model's own preference head, or, where that is untaught, what this learner made of the log of another
population. It serves alone for the first third of the pages; then learned tastes and releases are served. Half-way,
tastes turn once. `first` and `last` are the first and the last third.

    lift_over_X     click rate of `personal` over that of X, less 1; 95 % by bootstrap over people x items
    rise            lift over neutral, last less first; `frozen_rise` the same of `frozen`, which must not rise
    a_a             the neutral arm's odd pages over its even ones, less 1: the interval has to hold 0

Without `--model` the pool is planted and the encoder perfect: a ceiling for whatever draws (bench/closed_pool.py). Real
here are decoding, learner, trainer, verdicts, policies and decisions, in this process; Kafka, S3, Feast and HTTP are
left out (bench/closed_arms.py). Segments stay as they are, and nothing is redrawn while the loop runs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before numpy is imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench import closed_pool as pools
from bench.closed_arms import ARMS, Log, Loop, Setup, Stack
from icg.evaluation.audience import Habits, Readers
from icg.evaluation.bootstrap import Interval, of_means
from icg.evaluation.emoji import Gallery, gallery
from icg.evaluation.people import WithinConcept
from icg.evaluation.report import Figure, report, versions
from icg.preference import Head
from icg.tiny.files import DATA

BINS = 24
SPACE = "0" * 64
ANOTHER = 7919
"""Seed of the population that revision 0 learned from."""


def pictures(train: Gallery, held: Gallery, encoder: pools.Encoder | None, histories: int) -> pools.Pictures:
    """The emoji under an encoder (None: the perfect one); histories are choices among so many train concepts."""
    within = WithinConcept.fit(train.raw, train.pictures.concepts).joined(held.raw, held.pictures.concepts)
    names = np.unique(train.pictures.concepts)
    names = names[np.linspace(0, len(names) - 1, min(histories, len(names))).astype(int)] if histories else names
    some = train.where(np.isin(train.pictures.concepts, names))
    told = encoder or pools.Perfect(within)
    images = [] if encoder is None else [some.image(row) for row in range(len(some))]
    return pools.Pictures(some, held, within, told(some.raw, some.pictures.concepts.tolist(), images))


def taught(world: pools.Pictures, encoder: pools.Encoder, head: Head, pages: int, setup: Setup) -> Head:
    """A head that learned from the log of another population, shown random covers of other items."""
    crowd = world.crowd(300, setup.seed + ANOTHER, head)
    segments, belongs = pools.segments_of(crowd.vectors)
    elsewhere = replace(world, held=world.train)
    covers = pools.planted(elsewhere, encoder, head, segments, items=100)
    stack = Stack(covers, crowd.vectors, head, setup.preferences)
    alone = replace(setup, pages=pages, arms=("random",), learns_from=pages, seed=setup.seed + ANOTHER)
    Loop(stack, Readers(crowd.people, Habits(), seed=ANOTHER), belongs, alone).run(bins=1)
    return stack.trainer.average.copy()


def is_untaught(head: Head) -> bool:
    start = Head.start(head.space, head.dimension)
    return bool((head.weight == start.weight).all() and (head.bias == start.bias).all())


# -- figures ----------------------------------------------------------------------------------------------------------


def lift(log: Log, arm: str, over: str, bins: slice, arms: tuple[str, ...] = ARMS) -> Interval:
    """Click rate of one arm over another's, less 1."""
    return of_means(_tables(log, arms, [(arm, bins), (over, bins)]), _lift)


def rise(log: Log, arm: str, first: slice, last: slice, arms: tuple[str, ...] = ARMS) -> Interval:
    """Lift over neutral, last less first."""
    asked = [(arm, last), ("neutral", last), (arm, first), ("neutral", first)]
    return of_means(_tables(log, arms, asked), lambda means: _lift(means[:4]) - _lift(means[4:]))


def _tables(log: Log, arms: tuple[str, ...], asked: list[tuple[str, slice]]) -> NDArray[np.float64]:
    made = []
    for arm, bins in asked:
        k = arms.index(arm)
        made += [log.clicks[k, bins].sum(axis=0), log.shows[k, bins].sum(axis=0)]
    return np.stack(made).astype(np.float64)


def _lift(means: NDArray[np.float64]) -> float:
    clicks, shows, others, theirs = means
    return float((clicks / shows) / (others / theirs) - 1)


def a_a(log: Log) -> Interval:
    """Neutral against neutral: bins by turns."""
    halves = [(log.clicks[0, start::2].sum(0), log.shows[0, start::2].sum(0)) for start in (1, 0)]
    return of_means(np.stack([table for half in halves for table in half]).astype(np.float64), _lift)


def figures(log: Log, drift_at: float) -> list[Figure]:
    """All of them, from the log of a run."""
    third = BINS // 3
    first, last = slice(0, third), slice(BINS - third, BINS)

    def three(
        name: str, found: Interval, note: str, *, over: bool = False, under: bool = False, at_least: bool = False
    ) -> list[Figure]:
        """A figure and its interval, of which is wanted to be over 0; not to be under it; not to be over it."""
        low = Figure(f"{name}_low", found.low, least=0 if over else None, most=0 if under else None)
        high = Figure(f"{name}_high", found.high, least=0 if at_least else None)
        return [Figure(name, found.value, note=note), low, high]

    shows = log.shows.sum(axis=(1, 2, 3))
    rates = log.clicks.sum(axis=(1, 2, 3)) / shows
    made = [
        Figure("impressions_an_arm", float(shows.min()), least=20_000, note="simulated; each page in every arm"),
        Figure("releases", float(log.releases[-1]), note=f"accepted; {log.refusals} refused"),
        Figure(
            "order_first", log.order["first"], note="pairs of covers in a person's true order: revision 0, at first"
        ),
        Figure("order_last_frozen", log.order["last_frozen"], note="the same of revision 0, after the drift"),
        Figure("order_last", log.order["last"], note="and of the last release with what was learned of each"),
        *(
            Figure(f"click_rate_{name}", float(rate), note="over the whole run")
            for name, rate in zip(ARMS, rates, strict=True)
        ),
    ]
    made += three("a_a", a_a(log), "neutral over neutral: the interval holds 0", under=True, at_least=True)
    for name, bins in (("first", first), ("last", last)):
        found = lift(log, "personal", "neutral", bins)
        made += three(f"lift_over_neutral_{name}", found, f"{name} third; not significantly under 0", at_least=True)
    for other in ("best_of_8", "random", "frozen"):
        made += three(f"lift_over_{other}", lift(log, "personal", other, last), "last third")
    made += three("oracle_over_neutral", lift(log, "oracle", "neutral", last), "last third: a ceiling")
    where = f"tastes turn after {drift_at:.0%} of the pages"
    made += three("rise", rise(log, "personal", first, last), where, over=True)
    made += three("frozen_rise", rise(log, "frozen", first, last), "revision 0 for ever: must not rise", under=True)
    return made


def curve(log: Log, parts: int = 6) -> str:
    """Click rates in per cent along the run, a line an arm."""
    lines = []
    for k, name in enumerate(ARMS):
        rates = [
            100 * log.clicks[k, part].sum() / max(1, log.shows[k, part].sum())
            for part in np.array_split(np.arange(BINS), parts)
        ]
        lines.append(f"{name:>10} " + " ".join(f"{rate:6.2f}" for rate in rates))
    return "\n".join(lines)


# -- command ----------------------------------------------------------------------------------------------------------


def measure(
    train: Gallery,
    held: Gallery,
    setup: Setup,
    *,
    model: Path | None = None,
    planted: bool = True,
    people: int = 400,
    items: int = 0,
    before: int = 4000,
    histories: int = 0,
    drift: float = 0.5,
    drift_at: float = 0.5,
    pool: Path | None = None,
) -> Log:
    """Draw or take the pool, run the loop."""
    encoder: pools.Encoder | None = None
    head = Head.start(SPACE, pools.DIMENSION)
    if model is not None:
        from icg.rewards import Judge

        judge = Judge.from_parts(model / "rewards", model / "space", model / "preference")
        head = judge.head

        def encoder(raw: NDArray[np.float64], concepts: list[str], images: list[Image.Image]) -> pools.Floats:
            return judge.embed(images)

    world = pictures(train, held, encoder, histories)
    told = encoder or pools.Perfect(world.within)
    if is_untaught(head) and before:
        head = taught(world, told, head, before, setup)
    crowd = world.crowd(people, setup.seed, head)
    segments, belongs = pools.segments_of(crowd.vectors)
    if planted or model is None:
        covers = pools.planted(world, told, head, segments, items)
    else:
        signed = f"{pools.signature(model, segments)}-{items}"
        if pool is not None and pool.exists():
            covers = pools.load(pool, signed)
        else:
            covers = pools.drawn(world, told, model, segments, items)
            if pool is not None:
                pools.save(pool, signed, covers)
    habits = Habits(drift=drift, drift_at=round(drift_at * setup.pages))
    setup = replace(setup, learns_from=setup.pages // 3, page_size=min(setup.page_size, len(covers)))
    stack = Stack(covers, crowd.vectors, head, setup.preferences)
    return Loop(stack, Readers(crowd.people, habits, setup.seed), belongs, setup).run(BINS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Folder of icg-tiny: base mllm adapter rewards space preference.")
    parser.add_argument("--planted", action="store_true", help="Real pictures as covers, under the model's encoder.")
    parser.add_argument("--data", type=Path, default=DATA, help="The emoji parquet file.")
    parser.add_argument("--pool", type=Path, help="Keep drawn covers in this .npz file, or take them from it.")
    parser.add_argument("--pages", type=int, default=30_000, help="Of 12 impressions, each in all six arms.")
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--items", type=int, default=0, help="Validation concepts, evenly spaced; 0: all.")
    parser.add_argument("--histories", type=int, default=300, help="Train concepts that histories are made of; 0: all.")
    parser.add_argument("--before", type=int, default=4000, help="Pages of the log that teaches an untaught head.")
    parser.add_argument("--drift", type=float, default=0.5, help="Share of every taste that is new half-way.")
    parser.add_argument("--policy", choices=["softmax", "thompson"], default="softmax")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="Write the figures there as well.")
    given = parser.parse_args()
    if not given.data.is_file():
        print("bench/closed_loop.py: no pictures: `--data FILE` names the emoji parquet file", file=sys.stderr)
        return 2
    began = time.monotonic()
    train, held = gallery("train", data=given.data), gallery("val", data=given.data)
    setup = Setup(pages=given.pages, policy=given.policy, seed=given.seed)
    try:
        log = measure(
            train, held, setup, model=given.model, planted=given.planted, people=given.people, items=given.items,
            before=given.before, histories=given.histories, drift=given.drift, pool=given.pool,
        )  # fmt: skip
    except ValueError as error:
        print(f"bench/closed_loop.py: {error}", file=sys.stderr)
        return 2
    drawn = given.model is not None and not given.planted
    facts = {
        "pool": "drawn by the model" if drawn else "planted: real pictures",
        "encoder": "the model's" if given.model else "perfect: the attributes themselves",
        "policy": given.policy,
        "seconds": round(time.monotonic() - began),
        **versions("numpy"),
    }
    print("click rates in per cent along the run (simulated)\n" + curve(log))
    return 0 if report("Closed loop (simulated people)", figures(log, 0.5), given.json, facts) else 1


if __name__ == "__main__":
    sys.exit(main())
