import json
from base64 import b64decode, b64encode

import numpy as np
import pytest

from icg.preference import Head
from workers.events import BadEvent, PreferencePairs
from workers.preferences.pairs import Pairs, Rows, decode, encode, interest, lean, margins_of

SPACE = "a" * 64
TIME = "2026-01-01T00:00:00+00:00"


def b64(vectors: np.ndarray) -> str:
    return b64encode(vectors.astype("<f4").tobytes()).decode()


def some(scale: float = 1.0) -> Pairs:
    random = np.random.default_rng(0)
    users, others, chosen, rejected, items = (scale * random.normal(size=(5, 5, 8))).astype(np.float32)
    weights = random.random(size=(3, 5)).astype(np.float32)
    rows = Rows(users, others, chosen, rejected, items, *weights, np.arange(5), np.arange(5, 10), np.arange(5) % 3)
    return Pairs(7, 2, SPACE, rows, (4,))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_they_travel_as_the_event_that_the_schema_says(scale: float) -> None:
    pairs = some(scale)
    value = encode(pairs, TIME)
    event = PreferencePairs.decode(value)
    assert (event.sequence, event.source_partition, event.space, event.forget) == (7, 2, SPACE, [4])
    assert event.held_out == pairs.rows.held_out.tolist()
    back = decode(value)
    for name, column in back.rows.columns().items():
        assert (column == pairs.rows.columns()[name]).all()
        assert column.dtype == pairs.rows.columns()[name].dtype
    assert b64decode(event.users) == pairs.rows.users.astype("<f4").tobytes()
    assert encode(pairs, TIME) == value


def test_a_message_may_only_say_whom_to_forget() -> None:
    back = decode(encode(Pairs(7, 2, SPACE, Rows.empty(0, 8), (1, 2)), TIME))
    assert (len(back), back.forget) == (0, (1, 2))
    with pytest.raises(BadEvent, match="no pairs"):
        decode(encode(Pairs(7, 2, SPACE, Rows.empty(0, 8)), TIME))


@pytest.mark.parametrize(
    "change",
    [
        {"users": b64(np.ones((5, 7)))},
        {"users": b64(np.ones((4, 8)))},
        {"users": b64(np.ones(1))},
        {"users": b64(np.full((5, 8), np.nan))},
        {"chosen": b64(np.full((5, 8), np.inf))},
        {"items": "?"},
        {"users": [[1.0] * 8] * 5},
        {"weights": [-1.0] * 5},
        {"weights": [], "users": ""},
        {"held_out": [1]},
        {"held_out": [3, 0, 0, 0, 0]},
        {"winners": [10**30] * 5},
        {"chosen_weights": [1.0]},
        {"sequence": "x"},
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
    pairs = some().rows
    random = np.random.default_rng(1)
    head = Head(SPACE, random.normal(size=(8, 8)), random.normal(size=8))
    found = margins_of(head, pairs)
    wanted = [
        u @ head.weight @ c + head.bias @ c - o @ head.weight @ r - head.bias @ r
        for u, c, o, r in zip(pairs.users, pairs.chosen, pairs.others, pairs.rejected, strict=True)
    ]
    assert np.allclose(found, wanted, atol=1e-4)
    matrix = random.normal(size=(8, 8)).astype(np.float32)
    apart = [(u - o) @ matrix @ i for u, o, i in zip(pairs.users, pairs.others, pairs.items, strict=True)]
    assert np.allclose(interest(matrix, pairs), apart, atol=1e-4)


def test_lean_is_a_logistic_that_does_not_overflow() -> None:
    margin = np.array([-1e4, -1.0, 0.0, 1.0, 1e4], np.float32)
    assert np.allclose(lean(margin), [1, 1 / (1 + np.exp(-1)), 0.5, 1 / (1 + np.exp(1)), 0])
