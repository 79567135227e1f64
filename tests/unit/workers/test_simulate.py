import numpy as np
import pytest

from icg.evaluation.attributes import NAMES
from icg.evaluation.people import Population
from workers.simulate import Audience, Shown


def audience(n: int = 4, click_rate: float = 0.07) -> Audience:
    return Audience([f"u{i}" for i in range(n)], Population.drawn(n, 2, seed=1), ["a", "b"], click_rate=click_rate)


def shown(picture: np.ndarray, title: str = "x") -> Shown:
    return Shown("i", title, picture, {"cover_id": "0" * 64})


def test_click_rates_lie_where_people_click() -> None:
    rng = np.random.default_rng(0)
    crowd = audience(200)
    clicks = [
        crowd.clicks(person, [shown(rng.normal(size=len(NAMES)), f"t{i}") for i in range(12)], [0] * 12, rng)
        for person in range(200)
        for _ in range(10)
    ]
    assert 0.04 < np.mean(clicks) < 0.10
    by_position = np.mean(clicks, axis=0)
    assert by_position[0] > 2 * by_position[-1] > 0


def test_people_click_what_they_have_a_taste_for() -> None:
    crowd, rng = audience(), np.random.default_rng(1)
    liked = crowd._people.general[2] + crowd._people.by_topic[2, 1]
    liked = liked / np.linalg.norm(liked) * 2
    rate = {
        sign: np.mean([crowd.clicks(2, [shown(sign * liked)], [1], rng) for _ in range(3000)]) for sign in (1.0, -1.0)
    }
    assert rate[1.0] > 3 * rate[-1.0]


def test_a_choice_depends_on_nothing_but_what_is_seen() -> None:
    crowd = audience()
    page = [shown(np.ones(len(NAMES)))]
    other = [Shown("i", "x", np.ones(len(NAMES)), {"cover_id": "0" * 64, "segment_id": "s", "rewards": {"a": 9.0}})]
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    assert [crowd.clicks(0, page, [0], one) for _ in range(200)] == [
        crowd.clicks(0, other, [0], two) for _ in range(200)
    ]


def test_users_and_people_must_match() -> None:
    with pytest.raises(ValueError, match="1 users for 2"):
        Audience(["u"], Population.drawn(2, 1, seed=0), ["a"])
