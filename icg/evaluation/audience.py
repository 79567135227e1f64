"""Simulated readers of pages: what they look at, what they click, when their tastes turn, who comes and who leaves.

Called simulated wherever they are reported. A reader has what a person has: the pictures, the titles, the places on the
page, a hidden taste in pixels and a fondness for items whatever their cover. No segment, reward, release or propensity
is an argument of anything here, and what trains imports nothing of this package (tests hold both).

    P(click) = P(looks at position k) · σ(bias + taste · U(reader, picture, topic) + appeal · fondness(reader, title))

All of it follows from the seed and the number of the page, not from a clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icg.evaluation.people import Floats, Population


@dataclass(frozen=True)
class Habits:
    """How people read."""

    click_rate: float = 0.1  # at the first position, of an item and a cover that leave a reader cold
    attention: float = 0.85  # a reader looks at position k + 1 so much less often than at position k
    taste: float = 1.0  # log odds of a click a unit of utility
    appeal: float = 0.5  # and a deviation of fondness for the item
    drift_at: int | None = None  # page from which on tastes are others, once; None: they stay
    drift: float = 0.5  # how much of the variance of a taste is then new; half of that is a fashion, shared by all
    present: float = 1.0  # share of the people who read at a time
    churn: float = 0.0  # people a page who leave for good while as many others come

    def __post_init__(self) -> None:
        for name in ("click_rate", "attention", "drift", "present"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, more than 0 and at most 1 is wanted")
        if self.churn < 0 or (self.churn and self.present == 1):
            raise ValueError("churn is at least 0, and only where somebody is left to come (present under 1)")


class Readers:
    """People with habits.

    Args:
        seed: of fondness, drift and the order in which people come.
    """

    def __init__(self, people: Population, habits: Habits | None = None, seed: int = 0) -> None:
        self.people, self.habits, self.seed = people, habits or Habits(), seed
        # Of a stream of its own: people drawn from the next seed would turn into what they are.
        self._later = people.drifted(self.habits.drift, int(np.random.default_rng([seed, 1]).integers(2**62)))
        self._order = np.random.default_rng([seed, 2]).permutation(len(people.general))
        self._fondness: dict[tuple[int, str], float] = {}

    def __len__(self) -> int:
        return len(self.people.general)

    def tastes(self, page: int) -> Population:
        """As they are when this page is read."""
        return self.people if self.habits.drift_at is None or page < self.habits.drift_at else self._later

    def present(self, page: int) -> NDArray[np.int64]:
        """Who reads at the time of this page: a window on a fixed order of the people, which churn moves on.

        Who left comes back only when everybody else has been there.
        """
        count = max(1, round(self.habits.present * len(self)))
        gone = int(page * self.habits.churn)
        return self._order[(gone + np.arange(count)) % len(self)]

    def reader(self, page: int, rng: np.random.Generator) -> int:
        """Who reads this page."""
        there = self.present(page)
        return int(there[rng.integers(len(there))])

    def looked_at(self, positions: int) -> Floats:
        """[positions] chance that somebody looks there. A platform measures this, and may tell it to who learns."""
        return np.asarray(self.habits.attention ** np.arange(positions))

    def fondness(self, person: int, title: str) -> float:
        """How much this person cares for this item, whatever its cover: fixed, standard normal."""
        known = self._fondness.get((person, title))
        if known is None:
            digest = hashlib.sha256(f"{self.seed}\n{person}\n{title}".encode()).digest()
            known = float(np.random.default_rng(int.from_bytes(digest[:8], "big")).normal())
            self._fondness[person, title] = known
        return known

    def odds(self, person: int, page: int, pictures: Floats, topics: Sequence[int], titles: Sequence[str]) -> Floats:
        """[n] chances of a click on what is looked at.

        Args:
            pictures: [n, 24], standardised attributes of the covers.
            topics: columns of the population's tastes.
        """
        now, habits = self.tastes(page), self.habits
        utility = ((now.general[person] + now.by_topic[person, list(topics)]) * pictures).sum(axis=1)
        fond = np.array([self.fondness(person, title) for title in titles])
        bias = np.log(habits.click_rate / (1 - habits.click_rate))
        return np.asarray(1 / (1 + np.exp(-(bias + habits.taste * utility + habits.appeal * fond))))

    def clicks(
        self,
        person: int,
        page: int,
        pictures: Floats,
        topics: Sequence[int],
        titles: Sequence[str],
        rng: np.random.Generator,
    ) -> NDArray[np.bool_]:
        """[n] which entries of a page are clicked. Draws 2n numbers, whatever is shown."""
        looks, decides = rng.random((2, len(pictures)))
        seen = looks < self.looked_at(len(pictures))
        return np.asarray(seen & (decides < self.odds(person, page, pictures, topics, titles)))
