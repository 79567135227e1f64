"""What has to come next, whatever a broker and its client make of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.covers.arrivals import Arrival, Arrivals

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


def test_what_is_hidden_again_is_asked_for_again_and_never_given_up() -> None:
    arrivals = Arrivals()
    arrivals.begin(HERE, 3)
    assert seen(arrivals, 6, 5, 6, *[5] * 20, 3, 4, 5) == [GAP, GAP, KNOWN, *[GAP] * 20, NEXT, NEXT, NEXT]


def test_where_a_broker_has_nothing_nothing_is_missing() -> None:
    """A marker between two messages, two in a row, one at the end, and an offset to begin with that is one."""
    arrivals = Arrivals()
    arrivals.begin(HERE, 3)
    for start, end in ((3, 4), (5, 7), (8, 9), (9, 10)):
        arrivals.nothing(HERE, start, end)
    assert seen(arrivals, 4, 7) == [NEXT, NEXT]
    assert arrivals.next(HERE) == 10
    assert seen(arrivals, 11, 10, 11) == [GAP, NEXT, NEXT]


def test_what_is_no_message_is_finished_with_the_message_before_it() -> None:
    arrivals = Arrivals()
    arrivals.begin(HERE, 3)
    assert seen(arrivals, 3, 4) == [NEXT, NEXT]
    arrivals.nothing(HERE, 5, 7)
    assert [arrivals.after(HERE, 3), arrivals.after(HERE, 4)] == [4, 7]
    assert seen(arrivals, 7) == [NEXT]
    assert [arrivals.after(HERE, 4), arrivals.after(HERE, 7)] == [5, 8]


def test_what_is_no_message_is_finished_by_itself_where_nothing_is_in_hand() -> None:
    arrivals = Arrivals()
    arrivals.begin(HERE, 3)
    assert arrivals.past(HERE) is None
    arrivals.nothing(HERE, 3, 5)
    assert [arrivals.past(HERE), arrivals.past(HERE)] == [5, None]
    assert seen(arrivals, 5) == [NEXT]
    arrivals.nothing(HERE, 6, 8)
    assert arrivals.past(HERE) is None  # 5 is in hand
    arrivals.again(HERE)
    assert arrivals.past(HERE) is None
    assert arrivals.after(HERE, 5) == 8
    arrivals.nothing(HERE, 8, 9)
    assert [arrivals.past(HERE), arrivals.past(HERE)] == [9, None]


def test_a_hole_that_is_told_of_too_late_or_twice_does_no_harm() -> None:
    arrivals = Arrivals()
    arrivals.begin(HERE, 3)
    assert seen(arrivals, 4) == [GAP]
    arrivals.nothing(HERE, 3, 4)
    assert seen(arrivals, 4) == [NEXT]
    arrivals.nothing(HERE, 3, 4)
    assert seen(arrivals, 4, 5) == [KNOWN, NEXT]
    assert not arrivals._holes[HERE]


def test_what_came_instead_may_go_too() -> None:
    """By retention, while the missing one is asked for; then delivery begins anew where it was."""
    arrivals = Arrivals()
    arrivals.begin(HERE, 3)
    assert seen(arrivals, 5, 6, 7) == [GAP, KNOWN, KNOWN]
    arrivals.again(HERE)
    arrivals.nothing(HERE, 3, 6)
    assert seen(arrivals, 6, 7) == [NEXT, NEXT]


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


@given(st.sets(st.integers(0, 12), min_size=1), st.lists(st.integers(0, 3), min_size=13, max_size=13), st.data())
def test_each_message_is_handled_once_and_in_order(there: set[int], hidden: list[int], data: st.DataObject) -> None:
    """A log with holes, read by a client that hides messages, some often, and hands out several at a time."""
    arrivals, log, handled, position = Arrivals(), sorted(there), list[int](), 0
    arrivals.begin(HERE, 0)
    for _ in range(1000):
        for offset in [each for each in log if each >= position][: data.draw(st.integers(1, 5))]:
            if offset > position:
                arrivals.nothing(HERE, position, offset)
            position = offset + 1
            if hidden[offset]:
                hidden[offset] -= 1
                continue
            match arrivals.see(HERE, offset):
                case Arrival.NEXT:
                    handled.append(offset)
                case Arrival.GAP:
                    position = arrivals.next(HERE) or 0
                    break
        else:
            if position > log[-1]:  # nothing more comes: a look finds what is overdue
                position = arrivals.next(HERE) or 0
                arrivals.again(HERE)
        if handled == log:
            return
    raise AssertionError(f"{handled} of {log}")
