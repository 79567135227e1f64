"""What bots do to the learner: `python bench/poison.py --json FILE`. A simulated audience, seeds fixed.

5 % of users are bots: they read at 100 times the rate of the others and click every cover of one style and no other.
The same people, with the same impressions and clicks, are learned from with the bots among them and without. Both runs
have learned from a clean stream before; then

    order_kept         correlation of clean people's scores of covers within an item, poisoned against clean
    order_kept_uncapped    the same without the cap on a person's pairs an hour
    clean_accepted     whether the clean twin's candidate is released (a refusal of the poisoned one counts only then)
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported

import argparse
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from bench.taste_world import KEY, START, TasteWorld, columns
from icg.evaluation.report import Figure, report, versions
from icg.preference import Head
from workers.preferences.judging import Margins, Verdict
from workers.preferences.propensity import Tokens
from workers.preferences.trainer import Trainer
from workers.settings import Preferences

SHARE, RATE = 0.05, 100
STYLE = 2


@dataclass
class Run:
    """A learner and its trainer, and what they say of people."""

    world: TasteWorld
    hourly: int

    def __post_init__(self) -> None:
        self.learner = self.world.learner(hourly=self.hourly)
        self.trainer = Trainer.of(self.world.head())
        self._tokens = Tokens([KEY])

    def take(self, values: list[bytes]) -> None:
        batch = columns(values, first=self.learner.offset)
        for start in range(0, len(batch), 10_000):
            part = batch.span(start, min(start + 10_000, len(batch)))
            for pairs in self.learner.take(part, self._tokens.weights(part), self.world):
                self.trainer.take(pairs, self.released)

    @property
    def released(self) -> Head:
        return self.trainer.start

    def scores(self, people: NDArray[np.int64]) -> NDArray[np.float32]:
        """[people, items, covers], less each item's mean."""
        tastes = self.learner.tastes
        vectors = self.world.vectors[people].copy()
        for row, person in enumerate(people.tolist()):
            number = tastes.names.get(self.world.user(person))
            if number is not None:
                vectors[row] += tastes.residual[number]
        pulls = vectors @ self.trainer.average.weight + self.trainer.average.bias
        found = np.einsum("ud,isd->uis", pulls, self.world.covers_seen)
        return np.asarray(found - found.mean(axis=2, keepdims=True), np.float32)

    def verdict(self) -> Verdict:
        return self.trainer.judge(self.released, Margins())


def bots_among(world: TasteWorld, values: list[bytes], bots: int, pages: int, seed: int = 9) -> list[bytes]:
    """`values` with the bots' events between them. The bots are the last people of the world."""
    random, mixed = np.random.default_rng(seed), []
    per_page = bots * RATE / (world.people_count - bots)
    count, due, when = 0, 0.0, world._time - timedelta(seconds=world.seconds * pages)
    now, world._time = world._time, when
    for value in values:
        mixed.append(value)
        if b'"kind":"impression"' not in value:
            continue
        world._time += timedelta(seconds=world.seconds)
        due += per_page
        while due >= 1:
            due -= 1
            count += 1
            person = world.people_count - 1 - int(random.integers(bots))
            item, segment = int(random.integers(world.items)), int(world.segment[person])
            shown = int(random.integers(world.styles)) if random.random() < 0.1 else segment
            name, token = f"bot-{seed}-{count}", world.token(item, shown, segment)
            kinds = ("impression", "click") if shown == STYLE else ("impression",)
            mixed += [
                world.event(kind, person, item, shown, f"{name}.{kind}", impression_id=name, decision=token)
                for kind in kinds
            ]
    world._time = now
    return mixed


def measure(people: int = 200, pages: int = 40_000, before: int = 80_000) -> dict[str, float]:
    """Clean pages before, then `pages` with and without the bots."""
    bots = round(people * SHARE)
    world = TasteWorld(people_count=people, appeal=-2.0, readers=people - bots, seconds=60 / (people - bots))
    assert world._time == START
    first, then = world.values(before), world.values(pages)
    poisoned = bots_among(world, then, bots, pages)
    clean_people = np.arange(people - bots)
    most = Preferences().pairs_per_hour
    found: dict[str, float] = {"bot_events": len(poisoned) - len(then), "events": len(poisoned)}
    scores, verdicts = {}, {}
    for name, hourly, stream in (("clean", most, then), ("poisoned", most, poisoned), ("uncapped", 10**9, poisoned)):
        run = Run(world, hourly)
        run.take(first)
        run.trainer.start = run.trainer.average.copy()  # what had been released by then
        run.trainer.since = 0
        run.trainer.fresh.clear()
        run.take(stream)
        scores[name], verdicts[name] = run.scores(clean_people), run.verdict()
    for name in ("poisoned", "uncapped"):
        found[f"order_{name}"] = float(np.corrcoef(scores["clean"].ravel(), scores[name].ravel())[0, 1])
    return found | {f"accepted_{name}": float(verdict.accepted) for name, verdict in verdicts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--pages", type=int, default=80_000)
    parser.add_argument("--before", type=int, default=240_000)
    parser.add_argument("--json", type=Path, help="Write the figures there as well.")
    asked = parser.parse_args()
    got = measure(asked.people, asked.pages, asked.before)
    note = f"simulated; {got['bot_events']:,.0f} of {got['events']:,.0f} events are the bots'"
    figures = [
        Figure("order_kept", got["order_poisoned"], least=0.99, note=note),
        Figure("order_kept_uncapped", got["order_uncapped"], note="without the cap on a person's pairs an hour"),
        Figure("clean_accepted", got["accepted_clean"], least=1, note="the clean twin's candidate is released"),
        Figure("poisoned_accepted", got["accepted_poisoned"], note="1: released, 0: refused"),
    ]
    if not report("Poison", figures, asked.json, versions("numpy")):
        sys.exit(1)


if __name__ == "__main__":
    main()
