"""Simulated readers click where people click, turn their tastes once, come and go; all of it by the seed."""

import inspect

import numpy as np
import pytest

from icg.evaluation.attributes import NAMES
from icg.evaluation.audience import Habits, Readers
from icg.evaluation.people import Population

PEOPLE = Population.drawn(200, 2, seed=1)


def readers(**habits: float) -> Readers:
    return Readers(PEOPLE, Habits(**habits))  # type: ignore[arg-type]


def rate(crowd: Readers, person: int, picture: np.ndarray, page: int = 0, title: str = "x") -> float:
    """Of a click on a cover at the first position."""
    return float(crowd.odds(person, page, picture[None], [1], [title])[0])


def taste(people: Population, person: int) -> np.ndarray:
    liked = people.general[person] + people.by_topic[person, 1]
    return liked / np.linalg.norm(liked) * 2


def test_five_to_ten_of_a_hundred_are_clicked_and_fewer_further_down() -> None:
    rng, crowd = np.random.default_rng(0), readers()
    titles = [f"t{k}" for k in range(12)]
    clicks = [
        crowd.clicks(person, 0, rng.normal(size=(12, len(NAMES))), [0] * 12, titles, rng)
        for person in range(200)
        for _ in range(20)
    ]
    assert 0.05 < np.mean(clicks) < 0.1
    by_position = np.mean(clicks, axis=0)
    assert by_position[0] > 2 * by_position[-1] > 0
    assert crowd.looked_at(3) == pytest.approx([1, 0.85, 0.7225])


def test_a_taste_a_fondness_and_nothing_else_move_a_click() -> None:
    crowd = readers()
    liked = taste(PEOPLE, 2)
    assert rate(crowd, 2, liked) > 3 * rate(crowd, 2, -liked)
    assert rate(crowd, 2, np.zeros(24)) != rate(crowd, 2, np.zeros(24), title="another")
    fond = [crowd.fondness(person, f"t{k}") for person in range(50) for k in range(20)]
    assert abs(np.mean(fond)) < 0.1
    assert 0.9 < np.std(fond) < 1.1


def test_what_a_reader_is_given_is_named() -> None:
    given = set(inspect.signature(Readers.clicks).parameters)
    assert given == {"self", "person", "page", "pictures", "topics", "titles", "rng"}


def test_tastes_turn_once_at_the_stated_page() -> None:
    crowd = readers(drift_at=100, drift=0.5)
    still = readers()
    liked = taste(PEOPLE, 3)
    assert rate(crowd, 3, liked, 99) == rate(still, 3, liked, 99)
    assert rate(crowd, 3, liked, 100) == rate(crowd, 3, liked, 10_000) != rate(still, 3, liked, 100)
    later = crowd.tastes(100)
    assert np.linalg.norm(later.general, axis=1) == pytest.approx(np.linalg.norm(PEOPLE.general, axis=1))
    cosine = (later.general * PEOPLE.general).sum(1) / np.square(PEOPLE.general).sum(1)
    assert 0.6 < cosine.mean() < 0.8  # sqrt(1 - drift) is 0.71
    moves = later.general - np.sqrt(0.5) * PEOPLE.general
    assert np.linalg.norm(moves.mean(axis=0)) > 0.3 * np.linalg.norm(moves, axis=1).mean()  # a fashion


def test_people_leave_and_others_come() -> None:
    crowd = readers(present=0.5, churn=0.1)
    first, next_, later = (set(crowd.present(page).tolist()) for page in (0, 10, 1000))
    assert len(first) == len(later) == 100
    assert len(first & next_) == 99
    assert not first & later
    rng = np.random.default_rng(0)
    assert {crowd.reader(1000, rng) for _ in range(300)} <= later


@pytest.mark.parametrize(
    "wrong", [{"click_rate": 0}, {"attention": 1.5}, {"churn": 0.1}, {"churn": -1, "present": 0.5}]
)
def test_habits_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"wanted|at least 0"):
        Habits(**wrong)  # type: ignore[arg-type]
