"""What has to come next, whatever a broker and its client make of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.covers.arrivals import ASKS, Arrival, Arrivals

HERE, THERE = ("item-publish", 0), ("item-publish", 1)
NEXT, KNOWN, GAP = Arrival.NEXT, Arrival.KNOWN, Arrival.GAP


def seen(arrivals: Arrivals, *offsets: int) -> list[Arrival]:
    return [arrivals.see(HERE, offset) for offset in offsets]


def test_what_is_missing_is_asked_for_and_all_behind_it_waits() -> None:
    arrivals = Arrivals()
    arrivals.begin(HERE, 3)
    assert seen(arrivals, 3, 5, 6, 7) == [NEXT, GAP, KNOWN, KNOWN]
    assert arrivals.next(HERE) == 4
    assert seen(arrivals, 4, 5, 6, 7) == [NEXT, NEXT, NEXT, NEXT]


def test_the_first_message_can_be_missing() -> None:
    arrivals = Arrivals()
    arrivals.begin(HERE, 0)
    assert seen(arrivals, 1, 0, 1) == [GAP, NEXT, NEXT]


def test_what_comes_first_however_often_it_is_asked_has_nothing_before_it() -> None:
    arrivals = Arrivals()
    arrivals.begin(HERE, 3)
    assert seen(arrivals, 6, 5, 6, 5, 5, 5, 6, 8) == [GAP, GAP, KNOWN, GAP, GAP, NEXT, NEXT, GAP]


def test_what_came_instead_may_go_too() -> None:
    """By retention, while the missing one is asked for; then delivery begins anew where it was."""
    arrivals = Arrivals()
    arrivals.begin(HERE, 3)
    assert seen(arrivals, 5, 6, 7) == [GAP, KNOWN, KNOWN]
    arrivals.begin(HERE, 3)
    assert seen(arrivals, 6, 6, 6, 6, 7) == [GAP, GAP, GAP, NEXT, NEXT]


def test_what_comes_twice_is_known() -> None:
    arrivals = Arrivals()
    arrivals.begin(HERE, 3)
    assert seen(arrivals, 3, 4, 3, 4, 5) == [NEXT, NEXT, KNOWN, KNOWN, NEXT]


def test_where_a_group_has_no_offset_the_first_that_comes_is_the_first() -> None:
    arrivals = Arrivals()
    arrivals.begin(HERE, None)
    assert arrivals.next(HERE) is None
    assert seen(arrivals, 9, 10, 12) == [NEXT, NEXT, GAP]


def test_partitions_are_apart_and_an_assignment_begins_anew() -> None:
    arrivals = Arrivals()
    arrivals.begin(HERE, 0)
    arrivals.begin(THERE, 7)
    assert [arrivals.see(HERE, 2), arrivals.see(THERE, 7)] == [GAP, NEXT]
    arrivals.forget([HERE])
    assert [arrivals.next(HERE), arrivals.next(THERE)] == [None, 8]
    arrivals.begin(HERE, 2)
    assert seen(arrivals, 2) == [NEXT]


@given(st.sets(st.integers(0, 12), min_size=1), st.lists(st.integers(0, ASKS - 1), min_size=13, max_size=13), st.data())
def test_each_message_is_handled_once_and_in_order(there: set[int], hidden: list[int], data: st.DataObject) -> None:
    """A log with holes, read by a client that hides messages, some often, and hands out several at a time."""
    arrivals, log, handled = Arrivals(), sorted(there), list[int]()
    arrivals.begin(HERE, 0)
    for _ in range(1000):
        coming = []
        for offset in log:
            if offset < (arrivals.next(HERE) or 0):
                continue
            if hidden[offset]:
                hidden[offset] -= 1
            else:
                coming.append(offset)
        for offset in coming[: data.draw(st.integers(1, 5))]:
            if arrivals.see(HERE, offset) is Arrival.NEXT:
                handled.append(offset)
        if handled == log:
            return
    raise AssertionError(f"{handled} of {log}")
