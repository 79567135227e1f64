import numpy as np

from icg.preference import Head
from workers.preferences.tastes import HOUR, Limits, Tastes

SPACE = "0" * 64
DAY = 24 * HOUR


def tastes(**limits: float) -> Tastes:
    return Tastes(4, Limits(**{"holdout": 0.0, "bound": 10.0, "half_life": 10 * DAY, **limits}))  # type: ignore[arg-type]


def test_a_persons_answers_count_so_many_times_an_hour_however_they_come() -> None:
    random = np.random.default_rng(0)
    people = random.integers(5, size=400)
    time = np.sort(random.integers(3 * HOUR, size=400))
    weight = random.choice(np.float32([0.1, 1, 1.37]), size=400)
    found = []
    for size in (1, 7, 400):
        each = tastes(pairs_per_hour=6)
        each.numbers([f"u{k}" for k in range(5)])
        parts = [
            each.admit(people[k : k + size], time[k : k + size], weight[k : k + size]) for k in range(0, 400, size)
        ]
        found.append(np.concatenate(parts))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    for person in range(5):
        for hour in range(3):
            mine = (people == person) & (time // HOUR == hour)
            assert mine.sum() > 6
            said = np.concatenate([[0], np.cumsum(np.maximum(weight[mine], 1))[:-1]])
            assert found[0][mine].tolist() == (said < 6 - 1e-3).tolist()
            assert 4 < found[0][mine].sum() <= 6


def test_a_taste_halves_by_event_time_however_often_it_is_looked_at() -> None:
    for step in (HOUR, DAY, 10 * DAY):
        each = tastes()
        each.numbers(["ann"])
        ann = np.array([0])
        each.ask(ann, 0, lambda names: np.ones((len(names), 4), np.float32))
        each.residual[0] = 1
        for time in range(step, 10 * DAY + 1, step):
            each.ask(ann, time, lambda names: np.ones((len(names), 4), np.float32))
        assert np.allclose(each.residual[0], 0.5, atol=2e-3)


def test_each_side_of_a_pair_moves_with_its_own_weight() -> None:
    each = tastes()
    people = each.numbers(["ann", "bob", "cat", "dan"])
    each.ask(people, 0, lambda names: np.zeros((len(names), 4), np.float32))
    covers = np.eye(4, dtype=np.float32)
    head = Head(SPACE, np.eye(4), np.zeros(4))
    one, sides = np.ones(2, np.float32), (np.array([4, 0], np.float32), np.array([1, 2], np.float32))
    each.learn(head, (people[:2], people[2:]), (covers[:2], covers[2:]), one, sides)
    moved = each.residual[:4] / each.residual[0, 0]
    assert np.allclose(moved, [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, -0.25, 0], [0, 0, 0, -0.5]], atol=1e-6)


def test_an_erased_person_leaves_nothing_and_their_number_is_nobodys() -> None:
    each = tastes()
    numbers = each.numbers(["ann", "bob"])
    each.residual[numbers] = 1
    each.remember(0, 5, 1)
    assert each.erase("ann") == 0
    assert each.erase("ann") is None
    assert (each.names.listed, each.history.of(0)) == (["", "bob"], [])
    assert not each.residual[0].any()
    assert each.numbers(["ann", "bob"]).tolist() == [2, 1]
