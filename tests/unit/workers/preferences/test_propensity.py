from datetime import date

import numpy as np
import pytest

from bench.taste_world import TasteWorld, columns
from workers.decisions import Choice, sign, verify
from workers.preferences.propensity import MOST_CHOICE, MOST_POSITION, Tokens

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
    found = Tokens([KEY]).weights(columns(values))
    assert np.allclose(found.choice, [0.25 / 0.925, MOST_CHOICE, 0, 0])  # not logged: no weight; a click is not asked
    assert not found.bad.any()


def test_a_token_that_is_not_ours_or_not_of_this_cover_is_as_if_there_were_none() -> None:
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
    tokens = Tokens([b"newer", KEY])
    for _ in range(2):  # read, then remembered
        found = tokens.weights(columns(values))
        assert found.bad.tolist() == [True] * 5 + [False]
        assert np.allclose(found.choice, [0] * 5 + [0.5 / 0.9])


def test_what_the_api_reads_it_reads_and_a_changed_token_says_nothing_else() -> None:
    world = TasteWorld()
    good = [token(world, 1, shown, (0.5, 0.25, 0.25)) for shown in range(3)]
    reader = Tokens([KEY])
    for text in good:
        decision = verify(text, KEY)
        known = reader._verified(text)
        assert known[:2] == (decision.chosen, decision.item_id)
        assert known[2] == pytest.approx(1 / (decision.count * decision.propensity))
        for k in range(0, len(text), 7):
            other = text[:k] + ("A" if text[k] != "A" else "B") + text[k + 1 :]
            assert reader._verified(other)[0] in ("", decision.chosen)  # another spelling of the same bytes
        assert reader._verified(text[:100] + "B" + text[100:])[0] == ""
    for text in ("", ".", "a.b", good[0].partition(".")[0], "é.é"):
        assert reader._verified(text)[0] == ""


def test_an_answer_from_where_few_look_weighs_more_within_bounds() -> None:
    world = TasteWorld()
    more = ({}, {"position_propensity": 1}, {"position_propensity": 0.75}, {"position_propensity": 0.001})
    values = [world.event("impression", 0, 0, 0, f"{k}", **each) for k, each in enumerate(more)]
    assert Tokens([KEY]).weights(columns(values)).position.tolist() == pytest.approx([1, 1, 4 / 3, MOST_POSITION])
