"""Deaths are counted by what was written down before them, over a real (embedded) store."""

import pytest

from workers.covers import inflight
from workers.covers.inflight import InFlight, parse, record_key
from workers.storage import ObjectStore

HERE = ("item-publish", 0)
THERE = ("item-publish", 1)


def owner(store: ObjectStore) -> InFlight:
    """A worker that has just been given both partitions."""
    inflight = InFlight(store)
    inflight.load(HERE)
    inflight.load(THERE)
    return inflight


def test_what_is_in_flight_at_each_death_is_counted_by_the_next_owner(store: ObjectStore) -> None:
    for deaths in range(4):
        inflight = owner(store)
        assert [inflight.deaths(HERE, offset) for offset in (7, 8)] == [deaths, 0]
        inflight.begin(HERE, [7])


def test_what_is_finished_was_not_in_flight(store: ObjectStore) -> None:
    first = owner(store)
    first.begin(HERE, [1, 2])
    first.end(HERE, 1)
    first.begin(HERE, [3])
    second = owner(store)
    assert [second.deaths(HERE, offset) for offset in (1, 2, 3)] == [0, 1, 1]
    assert second.deaths(THERE, 1) == 0


def test_deaths_are_kept_while_others_are_drawn(store: ObjectStore) -> None:
    owner(store).begin(HERE, [5])
    second = owner(store)
    second.begin(HERE, [6])
    third = owner(store)
    assert [third.deaths(HERE, offset) for offset in (5, 6)] == [1, 1]


def test_a_clean_end_counts_nothing(store: ObjectStore) -> None:
    owner(store).begin(HERE, [5])
    second = owner(store)
    second.begin(HERE, [5, 6])
    second.clear()
    third = owner(store)
    assert [third.deaths(HERE, offset) for offset in (5, 6)] == [1, 0]


def test_a_partition_that_was_taken_away_is_not_written(store: ObjectStore) -> None:
    first = owner(store)
    first.begin(HERE, [1])
    second = owner(store)
    second.begin(HERE, [2])
    first.hand_over([HERE])()
    first.clear()
    assert not first.known(HERE)
    stored = store.get(record_key(HERE))
    assert stored is not None
    assert parse(stored.data) == {1: 1, 2: 1}


def test_a_partition_that_moves_is_no_death(store: ObjectStore) -> None:
    for _ in range(4):
        living = owner(store)
        living.begin(HERE, [5, 6])
        living.hand_over([HERE])()
    assert [owner(store).deaths(HERE, offset) for offset in (5, 6)] == [0, 0]


def test_what_hangs_while_its_partition_moves_is_found_all_the_same(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers: the watchdog ends each in turn, and the partition goes back as the other one joins again."""
    monkeypatch.setattr(inflight, "HANGING", -1.0)
    for deaths in range(3):
        living = owner(store)
        assert living.deaths(HERE, 5) == deaths
        living.begin(HERE, [5])
        living.hand_over([HERE])()


def test_a_record_that_is_written_late_is_not_the_next_assignments(store: ObjectStore) -> None:
    living = owner(store)
    living.begin(HERE, [5])
    write = living.hand_over([HERE])
    living.load(HERE)
    living.begin(HERE, [6])
    write()
    living.begin(HERE, [7])
    assert [owner(store).deaths(HERE, offset) for offset in (6, 7)] == [1, 1]


def test_deaths_move_with_their_partition(store: ObjectStore) -> None:
    owner(store).begin(HERE, [5])
    living = owner(store)
    living.begin(HERE, [5, 6])
    living.hand_over([HERE])()
    living.begin(HERE, [7])  # what it has not finished yet
    assert [owner(store).deaths(HERE, offset) for offset in (5, 6, 7)] == [1, 0, 0]


def test_the_present_owner_wins_over_one_that_is_not_quite_done(store: ObjectStore) -> None:
    late = owner(store)
    present = owner(store)
    present.begin(HERE, [9])
    late.begin(HERE, [3])
    present.begin(HERE, [10])
    assert InFlight(store).deaths(HERE, 9) == 0
    assert [owner(store).deaths(HERE, offset) for offset in (9, 10)] == [1, 1]


@pytest.mark.parametrize("data", [b"", b"nonsense", b"[1]", b'{"x": 1}', b'{"1": "many"}'])
def test_a_damaged_record_says_nothing(data: bytes) -> None:
    assert parse(data) == {}
