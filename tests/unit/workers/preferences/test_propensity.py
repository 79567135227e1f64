from datetime import date

import numpy as np

from bench.taste_world import TasteWorld, columns
from workers.decisions import Choice, sign
from workers.preferences.propensity import MOST, weights

KEY = b"secret"


def token(world: TasteWorld, item: int, shown: int, propensities: tuple[float, ...], key: bytes = KEY) -> str:
    candidates = tuple(world.cover(item, number) for number in range(len(propensities)))
    choice = Choice(candidates[shown], "s", "segment", None, candidates, propensities)
    made = sign(choice, key, item_id=world.item(item), generation=1, day=date(2026, 1, 1), policy="segment")
    assert made is not None
    return made


def test_a_weight_makes_every_cover_as_likely_as_in_a_uniform_choice() -> None:
    world = TasteWorld()
    likely, rare = (token(world, 0, shown, (0.925, 0.025, 0.025, 0.025)) for shown in (0, 1))
    values = [
        world.event("impression", 0, 0, 0, "1", decision=likely),
        world.event("impression", 0, 0, 1, "2", decision=rare),
        world.event("impression", 0, 0, 1, "3"),
        world.event("click", 0, 0, 1, "4", decision=rare, impression_id="2"),
    ]
    found, bad = weights(columns(values), (KEY,))
    assert np.allclose(found, [0.25 / 0.925, MOST, 1, 1])
    assert not bad.any()


def test_a_token_that_is_not_ours_or_not_of_this_cover_weighs_nothing_special() -> None:
    world = TasteWorld()
    ours = token(world, 0, 0, (0.9, 0.1))
    values = [
        world.event("impression", 0, 0, 0, "1", decision=token(world, 0, 0, (0.9, 0.1), b"other")),
        world.event("impression", 0, 0, 1, "2", decision=ours),
        world.event("impression", 0, 1, 0, "3", decision=ours),
        world.event("impression", 0, 0, 0, "4", decision=ours[:-2]),
        world.event("impression", 0, 0, 0, "5", decision="x"),
        world.event("impression", 0, 0, 0, "6", decision=ours),
    ]
    found, bad = weights(columns(values), (b"newer", KEY))
    assert bad.tolist() == [True] * 5 + [False]
    assert np.allclose(found, [1] * 5 + [0.5 / 0.9])
