import json

import numpy as np
import pytest

from icg.preference import Head
from workers.events import BadEvent, PreferencePairs
from workers.preferences.pairs import Pairs, decode, encode, lean, margins

SPACE = "a" * 64
TIME = "2026-01-01T00:00:00+00:00"


def some(scale: float = 1.0) -> Pairs:
    random = np.random.default_rng(0)
    users, others, chosen, rejected = (scale * random.normal(size=(4, 5, 8))).astype(np.float32)
    held_out = np.array([False, True, False, False, True])
    return Pairs(7, 2, SPACE, users, others, chosen, rejected, random.random(5).astype(np.float32), held_out)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_they_travel_as_the_event_that_the_schema_says(scale: float) -> None:
    pairs = some(scale)
    value = encode(pairs, TIME)
    event = PreferencePairs.decode(value)
    assert (event.sequence, event.source_partition, event.space) == (7, 2, SPACE)
    assert event.held_out == pairs.held_out.tolist()
    back = decode(value)
    for name in ("users", "others", "chosen", "rejected"):
        largest = np.abs(getattr(pairs, name)).max()
        assert np.abs(getattr(back, name) - getattr(pairs, name)).max() <= 6e-4 * largest
    assert np.allclose(back.weights, pairs.weights, atol=1e-6)
    assert encode(pairs, TIME) == value


def test_pairs_of_one_person_need_not_name_them_twice() -> None:
    body = json.loads(encode(some(), TIME))
    del body["others"], body["held_out"]
    back = decode(json.dumps(body).encode())
    assert np.array_equal(back.others, back.users)
    assert not back.held_out.any()


@pytest.mark.parametrize(
    "change",
    [
        {"users": [[1.0]]},
        {"users": [[float("nan")] * 8] * 5},
        {"chosen": [[1.0] * 7] * 5},
        {"weights": [-1.0] * 5},
        {"weights": [], "users": [], "others": [], "chosen": [], "rejected": [], "held_out": []},
        {"held_out": [True]},
        {"sequence": "x"},
        {"users": [[1.0] * 8, [1.0]] + [[1.0] * 8] * 3},
    ],
)
def test_what_is_no_pairs_is_refused(change: dict[str, object]) -> None:
    body = {**json.loads(encode(some(), TIME)), **change}
    with pytest.raises(BadEvent, match="no pairs"):
        decode(json.dumps(body).encode())


def test_a_message_without_a_value_is_refused() -> None:
    with pytest.raises(BadEvent):
        decode(None)


def test_the_margin_is_between_two_people() -> None:
    pairs = some()
    random = np.random.default_rng(1)
    head = Head(SPACE, random.normal(size=(8, 8)), random.normal(size=8))
    found = margins(head, pairs.users, pairs.chosen, pairs.others, pairs.rejected)
    wanted = [
        u @ head.weight @ c + head.bias @ c - o @ head.weight @ r - head.bias @ r
        for u, c, o, r in zip(pairs.users, pairs.chosen, pairs.others, pairs.rejected, strict=True)
    ]
    assert np.allclose(found, wanted, atol=1e-4)


def test_lean_is_a_logistic_that_does_not_overflow() -> None:
    margin = np.array([-1e4, -1.0, 0.0, 1.0, 1e4], np.float32)
    assert np.allclose(lean(margin), [1, 1 / (1 + np.exp(-1)), 0.5, 1 / (1 + np.exp(1)), 0])
