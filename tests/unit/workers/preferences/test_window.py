from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from workers.preferences.couples import Answers, Couples
from workers.preferences.decode import CLICK, DISLIKE, DWELL, IMPRESSION, LIKE, Columns, keys_of
from workers.preferences.propensity import Weights
from workers.preferences.window import Window

SECOND = 1_000_000
HORIZON = 600 * SECOND


def columns(events: Sequence[tuple], first: int = 0) -> Columns:
    """(kind, event_id, user, cover or None, seconds[, impression_id]); a cover "a1" is of item "a"."""
    rows = [(*event, None)[:6] for event in events]
    kind, name, user, cover, seconds, impression = (list(column) for column in zip(*rows, strict=True))
    return Columns(
        offset=np.arange(first, first + len(rows)),
        time=(np.array(seconds) * SECOND).astype(np.int64),
        kind=np.array(kind, np.int8),
        key=keys_of(name),
        user=user,
        item=[(each or "a")[0] for each in cover],
        cover=cover,
        impression=impression,
        decision=[None] * len(rows),
        position_propensity=[None] * len(rows),
    )


def add(window: Window, batch: Columns) -> tuple[list[Couples], list[Answers]]:
    """As if every choice had been logged and uniform."""
    return window.add(batch, Weights.even(len(batch)))


def told(window: Window, parts: Sequence[Couples]) -> list[tuple[str, str, str, str, float]]:
    """(winner, chosen, loser, rejected, weight)."""
    users, covers = window.users.listed, window.covers.listed
    return [
        (users[winner], covers[chosen], users[loser], covers[rejected], weight)
        for part in parts
        for winner, chosen, loser, rejected, weight in zip(
            part.winner, part.chosen, part.loser, part.rejected, part.weight.tolist(), strict=True
        )
    ]


def couples_of(*events: tuple) -> tuple[list[tuple[str, str, str, str, float]], Window]:
    window = Window(HORIZON, most_shown=10**6)
    parts, _ = add(window, columns(events))
    return told(window, parts), window


def test_a_click_beats_the_neighbours_with_another_cover() -> None:
    couples, _ = couples_of(
        (IMPRESSION, "1", "ann", "a1", 0),
        (IMPRESSION, "2", "bob", "a2", 1),
        (IMPRESSION, "3", "cat", "b1", 2),
        (CLICK, "4", "bob", "a2", 3, "2"),
        (IMPRESSION, "5", "dan", "a3", 4),
    )
    assert couples == [("bob", "a2", "ann", "a1", 1), ("bob", "a2", "dan", "a3", 1)]


def test_the_same_cover_before_the_same_eyes_says_nothing() -> None:
    couples, _ = couples_of(
        (IMPRESSION, "1", "bob", "a1", 0), (IMPRESSION, "2", "bob", "a1", 1), (CLICK, "3", "bob", "a1", 2, "2")
    )
    assert couples == []


def test_the_same_cover_before_two_people_tells_them_apart() -> None:
    # To leave it out would make what the other one saw depend on what this one saw.
    couples, _ = couples_of(
        (IMPRESSION, "1", "ann", "a1", 0), (IMPRESSION, "2", "bob", "a1", 1), (CLICK, "3", "bob", "a1", 2, "2")
    )
    assert couples == [("bob", "a1", "ann", "a1", 1)]


def test_each_side_has_the_weight_of_its_own_choice_and_the_answer_that_of_its_position() -> None:
    batch = columns(
        [
            (IMPRESSION, "1", "ann", "a1", 0),
            (IMPRESSION, "2", "bob", "a2", 1),
            (CLICK, "3", "bob", "a2", 2, "2"),
            (DISLIKE, "4", "ann", "a1", 3, "1"),
        ]
    )
    choice, position = np.array([0.5, 4, 1, 1], np.float32), np.array([2, 3, 1, 1], np.float32)
    made, _ = Window(HORIZON).add(batch, Weights(choice, position, np.zeros(4, bool)))
    (found,) = made
    assert found.chosen_weight.tolist() == [4, 4]
    assert found.rejected_weight.tolist() == [0.5, 0.5]
    assert sorted(found.weight.tolist()) == [3, 4]  # bob's click at his place; ann's dislike, twice, at hers
    assert sorted(found.won.tolist()) == [False, True]


def test_two_people_are_compared_only_where_both_choices_were_logged() -> None:
    batch = columns(
        [
            (IMPRESSION, "1", "ann", "a1", 0),
            (IMPRESSION, "2", "bob", "a2", 1),
            (IMPRESSION, "3", "bob", "a3", 2),
            (CLICK, "4", "bob", "a2", 3, "2"),
        ]
    )
    weights = Weights(np.array([1, 0, 0, 0], np.float32), np.ones(4, np.float32), np.zeros(4, bool))
    window = Window(HORIZON)
    parts, _ = window.add(batch, weights)
    assert told(window, parts) == [("bob", "a2", "bob", "a3", 1)]
    assert parts[0].chosen_weight.tolist() == parts[0].rejected_weight.tolist() == [1]
    assert window.counts.unlogged == 1


def test_an_erased_person_is_in_no_couple_any_more() -> None:
    window = Window(HORIZON)
    add(window, columns([(IMPRESSION, "1", "ann", "a1", 0), (IMPRESSION, "2", "bob", "a2", 1)]))
    window.erase("ann")
    later = [(CLICK, "3", "bob", "a2", 2, "2"), (IMPRESSION, "5", "cat", "a3", 4)]
    parts, _ = add(window, columns(later, first=2))
    assert told(window, parts) == [("bob", "a2", "cat", "a3", 1)]
    assert "ann" not in window.users.listed


def test_one_person_may_see_two_covers_of_an_item() -> None:
    couples, _ = couples_of(
        (IMPRESSION, "1", "ann", "a1", 0), (IMPRESSION, "2", "ann", "a2", 1), (CLICK, "3", "ann", "a1", 2, "1")
    )
    assert couples == [("ann", "a1", "ann", "a2", 1)]


def test_a_dislike_turns_it_round_and_counts_twice() -> None:
    couples, _ = couples_of(
        (IMPRESSION, "1", "ann", "a1", 0), (IMPRESSION, "2", "bob", "a2", 1), (DISLIKE, "3", "bob", "a2", 2, "2")
    )
    assert couples == [("ann", "a1", "bob", "a2", 2)]


def test_a_like_that_names_no_impression_is_its_own() -> None:
    couples, window = couples_of((IMPRESSION, "1", "ann", "a1", 0), (LIKE, "2", "bob", "a2", 1))
    assert couples == [("bob", "a2", "ann", "a1", 2)]
    assert window.counts.unjoined == 0


def test_a_click_may_come_before_its_impression() -> None:
    couples, window = couples_of(
        (IMPRESSION, "1", "ann", "a1", 0), (CLICK, "2", "bob", "a2", 3, "9"), (IMPRESSION, "9", "bob", "a2", 2)
    )
    assert couples == [("bob", "a2", "ann", "a1", 1)]
    assert len(window.waiting) == 0


def test_impressions_may_have_a_name_of_their_own() -> None:
    couples, _ = couples_of(
        (IMPRESSION, "p.0.impression", "ann", "a1", 0, "p.0"),
        (IMPRESSION, "p.1.impression", "bob", "a2", 1, "p.1"),
        (CLICK, "p.0.click", "ann", "a1", 2, "p.0"),
    )
    assert couples == [("ann", "a1", "bob", "a2", 1)]


@pytest.mark.parametrize(
    ("answer", "counter"),
    [
        ((CLICK, "3", "eve", "a2", 2, "2"), "mismatched"),  # somebody else's impression
        ((CLICK, "3", "bob", "a1", 2, "2"), "mismatched"),  # another cover than was shown
        ((CLICK, "3", "bob", "a2", 2), "unjoined"),  # names none
    ],
)
def test_answers_that_do_not_fit_count_for_nothing(answer: tuple, counter: str) -> None:
    couples, window = couples_of((IMPRESSION, "1", "ann", "a1", 0), (IMPRESSION, "2", "bob", "a2", 1), answer)
    assert couples == []
    assert window.counts.as_dict()[counter] == 1


def test_an_impression_is_clicked_once_but_may_be_liked_as_well() -> None:
    couples, window = couples_of(
        (IMPRESSION, "1", "ann", "a1", 0),
        (IMPRESSION, "2", "bob", "a2", 1),
        (CLICK, "3", "bob", "a2", 2, "2"),
        (CLICK, "4", "bob", "a2", 3, "2"),
        (LIKE, "5", "bob", "a2", 4, "2"),
    )
    assert [couple[4] for couple in couples] == [1, 2]
    assert window.counts.unjoined == 1


def test_events_without_a_cover_and_dwell_count_as_nothing() -> None:
    couples, window = couples_of((IMPRESSION, "1", "ann", None, 0), (DWELL, "2", "ann", "a1", 1))
    assert couples == []
    assert (window.counts.without_cover, window.counts.impressions) == (2, 0)


def test_an_id_counts_once() -> None:
    window = Window(HORIZON)
    events = [(IMPRESSION, "1", "ann", "a1", 0), (IMPRESSION, "2", "bob", "a2", 1), (CLICK, "3", "bob", "a2", 2, "2")]
    parts, _ = add(window, columns([*events, events[2]]))
    assert len(told(window, parts)) == 1
    parts, _ = add(window, columns(events, first=10))
    assert told(window, parts) == []
    assert window.counts.duplicates == 4
    assert window.counts.impressions == 2


def test_ten_minutes_late_is_taken_and_a_moment_more_is_not() -> None:
    window = Window(HORIZON)
    add(window, columns([(IMPRESSION, "1", "ann", "a1", 1000)]))
    add(window, columns([(IMPRESSION, "2", "ann", "a1", 400), (IMPRESSION, "3", "ann", "a1", 399.9)], first=1))
    assert (window.counts.late, window.counts.impressions) == (1, 2)


def test_a_click_that_waits_too_long_is_given_up() -> None:
    window = Window(HORIZON)
    add(window, columns([(CLICK, "1", "ann", "a1", 0, "9")]))
    add(window, columns([(IMPRESSION, "2", "bob", "a2", 700)], first=1))
    add(window, columns([(IMPRESSION, "3", "bob", "a2", 800)], first=2))
    assert len(window.waiting) == 0
    assert window.counts.unjoined == 1


def test_an_id_is_known_for_as_long_as_its_event_would_not_be_late() -> None:
    # So no duplicate slips through: what the window has forgotten is late.
    window = Window(HORIZON)
    for number in range(200):
        add(window, columns([(IMPRESSION, f"{number}", "ann", "a1", number * 10)], first=2 * number))
        again = columns([(IMPRESSION, f"{max(0, number - 60)}", "ann", "a1", max(0, number - 60) * 10)], 2 * number + 1)
        add(window, again)
    assert window.counts.impressions == 200


def stream(n: int, seed: int) -> Columns:
    """All that can happen, out of order: late events, duplicates, early clicks, explicit names, likes without any."""
    random = np.random.default_rng(seed)
    events: list[tuple[float, tuple]] = []
    for number in range(n):
        cover = f"{'abcdefgh'[int(random.integers(8))]}{int(random.integers(3))}"
        user, seconds = f"u{int(random.integers(40))}", number * 1.7 - 700 * (random.random() < 0.02)
        named = random.random() < 0.5
        shown = (IMPRESSION, f"i{number}", user, cover, seconds, f"n{number}" if named else None)
        events.append((number, shown))
        if random.random() < 0.05:
            events.append((number + random.exponential(20), shown))
        chance = random.random()
        place = number + random.normal(5, 15)
        kind = int(random.choice([CLICK, LIKE, DISLIKE]))
        if chance < 0.2:
            events.append(
                (place, (kind, f"c{number}", user, cover, seconds + 3, f"n{number}" if named else f"i{number}"))
            )
        elif chance < 0.25:
            events.append((place, (kind, f"c{number}", user, cover, seconds + 3, None)))
    events.sort(key=lambda event: event[0])
    return columns([event for _, event in events])


@pytest.mark.parametrize(("most", "shown"), [(2_000_000, 60), (100, 60), (2_000_000, 8)])
def test_how_the_stream_is_cut_shows_nowhere(most: int, shown: int) -> None:
    batch = stream(2500, 3)
    batch.offset[:] = np.arange(len(batch)) * 20  # crosses the strides of `most`
    seen = []
    for size in (1, 7, 1000, 100_000):
        window, couples, answers = Window(HORIZON, most * 20, shown), [], []
        for start in range(0, len(batch), size):
            made, answered = add(window, batch.span(start, min(start + size, len(batch))))
            couples += told(window, made)
            answers += [
                (window.users.listed[u], kind) for a in answered for u, kind in zip(a.user, a.kind, strict=True)
            ]
        seen.append((couples, answers, window.counts.as_dict(), window.waiting.tolist()))
    assert len(seen[0][0]) > 200
    assert (seen[0][2]["crowding"] > 100) == (shown == 8)
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]
    assert seen[3] == seen[0]


def test_who_looks_at_more_than_a_person_can_is_nobodys_neighbour() -> None:
    window = Window(HORIZON, most_shown=3)
    bot = [(IMPRESSION, f"b{number}", "bot", "a1", number) for number in range(10)]
    people = [
        (IMPRESSION, "1", "ann", "a2", 10),
        (IMPRESSION, "2", "cat", "a3", 11),
        (CLICK, "3", "ann", "a2", 12, "1"),
    ]
    clicks = [(CLICK, f"c{number}", "bot", "a1", 13, f"b{number}") for number in range(10)]
    parts, _ = add(window, columns([*bot, *people, (CLICK, "3", "ann", "a2", 12, "1"), *clicks]))
    couples = told(window, parts)
    assert window.counts.crowding == 7
    assert couples == [("ann", "a2", "bot", "a1", 1), ("ann", "a2", "cat", "a3", 1), ("bot", "a1", "ann", "a2", 1)]
    later = [(IMPRESSION, "b99", "bot", "a1", 2000), (CLICK, "c99", "bot", "a1", 2001, "b99")]
    add(window, columns([*later, (IMPRESSION, "4", "dan", "a2", 2002)], first=100))
    assert window.counts.crowding == 7  # a window later they begin anew


def test_rows_are_freed() -> None:
    window = Window(60 * SECOND)
    for start in range(0, 60_000, 5000):
        add(window, columns([(IMPRESSION, f"{n}", f"u{n}", "a1", n / 100) for n in range(start, start + 5000)], start))
    assert window.end == 60_000
    assert window.end - window.base < 20_000


def test_users_that_left_the_window_lose_their_number_and_nobody_else_is_taken_for_them() -> None:
    window = Window(60 * SECOND)
    made: list[tuple[str, str, str, str, float]] = []
    n = 90_000
    for start in range(0, n, 10_000):
        events: list[tuple] = []
        for number in range(start, start + 10_000):
            events.append((IMPRESSION, f"i{number}", f"u{number}", f"a{number % 2}", number / 100))
            if number % 50 == 49:
                events.append((CLICK, f"c{number}", f"u{number}", f"a{number % 2}", number / 100, f"i{number}"))
        parts, _ = add(window, columns(events, first=2 * start))
        made += told(window, parts)
    assert len(window.users) < 70_000
    clicked = range(49, n, 50)
    wanted = {(f"u{k}", f"a{k % 2}", f"u{other}", f"a{other % 2}", 1) for k in clicked for other in (k - 1, k + 1)}
    assert set(made) == {couple for couple in wanted if couple[2] != f"u{n}"}


def test_random_clicks_give_no_cover_an_edge_however_often_it_is_shown() -> None:
    random = np.random.default_rng(5)
    events: list[tuple] = []
    for number in range(40_000):
        cover = "a1" if random.random() < 0.9 else "a2"
        events.append((IMPRESSION, f"i{number}", f"u{number % 50}", cover, number / 100))
        if random.random() < 0.2:
            events.append((CLICK, f"c{number}", f"u{number % 50}", cover, number / 100, f"i{number}"))
    couples, _ = couples_of(*events)
    wins = Counter(couple[1] for couple in couples if couple[1] != couple[3])
    assert sum(wins.values()) > 2000
    # Four standard deviations of a fair coin. A rule that looks for the nearest other cover fails here by forty.
    assert abs(wins["a1"] - wins["a2"]) < 4 * np.sqrt(wins["a1"] + wins["a2"])
