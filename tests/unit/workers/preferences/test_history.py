import numpy as np

from workers.preferences.history import KEPT, History


def test_the_newest_fifty_without_repeats() -> None:
    history = History()
    for code in range(60):
        history.add(7, code)
    assert history.of(7) == list(range(10, 60))
    history.add(7, 30)
    assert history.of(7) == [*(code for code in range(10, 60) if code != 30), 30]
    assert history.of(8) == []
    assert history.of(5_000_000) == []


def test_a_like_is_taken_back() -> None:
    history = History()
    history.add(1, 5)
    history.add(1, 6)
    assert history.drop(1, 5)
    assert not history.drop(1, 5)
    assert history.of(1) == [6]


def test_it_is_a_dictionary_of_lists_and_does_not_grow_with_what_is_forgotten() -> None:
    history, known = History(), {}
    random = np.random.default_rng(0)
    for step in range(40_000):
        person, code = int(random.integers(20)), int(random.integers(80))
        liked = known.setdefault(person, [])
        if code in liked:
            liked.remove(code)
        if random.random() < 0.1:
            history.drop(person, code)
        else:
            history.add(person, code)
            liked.append(code)
            del liked[:-KEPT]
        if step % 5000 == 0:
            history = History.restored({name: array.copy() for name, array in history.arrays().items()})
    assert {person: history.of(person) for person in known} == known
    assert len(history.arrays()["code"]) < 20_000
