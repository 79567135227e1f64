import numpy as np
import pytest

from workers.preferences.decode import keys_of
from workers.preferences.table import Table


def test_it_is_a_dictionary() -> None:
    table, known = Table(5000), {}
    random = np.random.default_rng(0)
    row = 0
    for _ in range(40):
        names = sorted({f"k{number}" for number in random.integers(4000, size=100)})
        rows = np.arange(row, row + len(names))
        row += len(names)
        table.put(keys_of(names), rows)
        known.update(zip(names, rows.tolist(), strict=True))
    names = [f"k{number}" for number in range(4500)]
    assert table.get(keys_of(names)).tolist() == [known.get(name, -1) for name in names]


def test_keys_that_share_a_slot_and_half_a_key_are_kept_apart() -> None:
    keys = np.array([[7, 1], [7, 2], [7 + 2048, 1], [7 + 2048, 3]], np.uint64)  # one slot of 2048, all of them
    table = Table(1024)
    table.put(keys, np.arange(4))
    assert table.get(keys).tolist() == [0, 1, 2, 3]
    assert table.get(np.array([[7, 3]], np.uint64)).tolist() == [-1]


def test_a_rebuild_keeps_only_what_it_is_given() -> None:
    table = Table(1024)
    keys = keys_of([str(number) for number in range(1000)])
    table.put(keys, np.arange(1000))
    table.rebuild(keys[500:], np.arange(500, 1000), room=3000)
    assert (table.get(keys[:500]) == -1).all()
    assert np.array_equal(table.get(keys[500:]), np.arange(500, 1000))
    assert not table.crowded(1500)


def test_it_does_not_run_full() -> None:
    table = Table(1024)
    keys = keys_of([str(number) for number in range(1025)])
    assert table.crowded(1025)
    with pytest.raises(ValueError, match="rebuild"):
        table.put(keys, np.arange(1025))
