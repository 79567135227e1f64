"""The choice of a cover: chain, exploration, stickiness, and a token that nobody can forge."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.decisions import BadToken, Offer, Reader, choose, page_worths, race, short_ids, sign, verify
from workers.events import NEUTRAL
from workers.policies import Taste, pack

DAY = date(2026, 11, 21)
KEY = b"a key of the tests"


def cover(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def offer(*segments: str, fallbacks: dict[str, str] | None = None) -> Offer:
    fallbacks = fallbacks or {}
    return Offer(
        segments,
        [cover(NEUTRAL if segment in fallbacks else segment) for segment in segments],
        [fallbacks.get(segment, "") for segment in segments],
    )


ALL = offer(NEUTRAL, "s1", "s2", "s3")


@pytest.mark.parametrize(
    ("given_offer", "reader", "blocked", "expected"),
    [
        (ALL, Reader("u", "s1", "s2"), (), ("s1", "segment", None)),
        (ALL, Reader("u", "new", "s2"), (), ("s2", "parent", "no_cover")),
        (ALL, Reader("u", "new", "gone"), (), (NEUTRAL, "neutral", "no_cover")),
        (ALL, Reader("u"), (), (NEUTRAL, "neutral", "user_unknown")),
        (ALL, Reader(), (), (NEUTRAL, "neutral", "anonymous")),
        (ALL, Reader(None, NEUTRAL), (), (NEUTRAL, "neutral", None)),
        (ALL, Reader("u", "s1", "s2"), ("s1",), ("s2", "parent", "blocked")),
        (ALL, Reader("u", "s1", "s2"), ("s1", "s2"), (NEUTRAL, "neutral", "blocked")),
        (ALL, Reader("u", "s1"), ("s1", NEUTRAL), (None, "reference", "blocked")),
        (offer(NEUTRAL, "s1", fallbacks={"s1": "neutral"}), Reader("u", "s1"), (), (NEUTRAL, "neutral", "gate")),
        (
            offer(NEUTRAL, "s1", fallbacks={"s1": "reference", NEUTRAL: "reference"}),
            Reader("u", "s1"),
            (),
            (None, "reference", "gate"),
        ),
        (offer(), Reader("u", "s1"), (), (None, "reference", "no_cover")),
    ],
)
def test_the_chain_is_own_parent_neutral_reference_and_says_why(given_offer, reader, blocked, expected):
    choice = choose(given_offer, reader, "i", DAY, blocked=frozenset(map(cover, blocked)))
    segment, served, fallback = expected
    blocked = frozenset(map(cover, blocked))
    assert (choice.cover_segment, choice.served, choice.fallback) == (segment, served, fallback)
    assert choice.cover_id == (given_offer.reference(blocked) if segment is None else cover(segment))


def test_personalization_off_is_neutral_for_everybody_however_much_is_explored():
    for k in range(50):
        choice = choose(ALL, Reader(f"u{k}", "s1"), "i", DAY, exploration=1.0, personalization=False)
        assert (choice.cover_id, choice.served, choice.fallback) == (cover(NEUTRAL), "neutral", "personalization_off")
        assert choice.propensities == (1.0,)


def test_frequencies_are_the_propensities():
    exploration, people = 0.4, 20_000
    choices = [choose(ALL, Reader(f"user-{k}", "s1"), "i", DAY, exploration=exploration) for k in range(people)]
    counts = Counter(choice.cover_id for choice in choices)
    expected = dict(zip(choices[0].candidates, choices[0].propensities, strict=True))
    assert expected[cover("s1")] == pytest.approx(0.6 + 0.1)
    assert sum(expected.values()) == pytest.approx(1.0)
    for candidate, propensity in expected.items():
        # Five standard deviations of a binomial share: the hashes are fixed, so this cannot flicker.
        spread = 5 * (propensity * (1 - propensity) / people) ** 0.5
        assert counts[candidate] / people == pytest.approx(propensity, abs=spread)


def test_only_another_segments_cover_is_called_exploration():
    served = {
        choice.cover_segment: (choice.served, choice.fallback)
        for choice in (choose(ALL, Reader(f"u{k}", "s1", "s2"), "i", DAY, exploration=1.0) for k in range(100))
    }
    assert served == {
        "s1": ("segment", None),
        "s2": ("parent", None),
        NEUTRAL: ("neutral", None),
        "s3": ("exploration", None),
    }


def test_covers_that_are_the_same_picture_are_one_candidate():
    same = Offer((NEUTRAL, "s1", "s2"), (cover("a"), cover("a"), cover("b")), ("", "", ""))
    choice = choose(same, Reader("u", "s1"), "i", DAY, exploration=0.5)
    assert choice.candidates == (cover("a"), cover("b"))
    assert choice.propensities == pytest.approx((0.75, 0.25))


def test_a_person_sees_one_cover_all_day_and_explores_anew_the_next():
    def seen(day: date) -> list[str | None]:
        return [choose(ALL, Reader(f"u{k}", "s1"), "i", day, exploration=1.0).cover_id for k in range(200)]

    assert seen(DAY) == seen(DAY)
    moved = sum(a != b for a, b in zip(seen(DAY), seen(date(2026, 11, 22)), strict=True))
    assert 110 < moved < 190  # 3/4 of 200 move when the draws are independent


def test_a_segment_that_is_asked_for_without_a_user_is_never_explored():
    choices = {choose(ALL, Reader(None, "s1"), f"i{k}", DAY, exploration=1.0) for k in range(50)}
    assert {(c.cover_id, c.served) for c in choices} == {(cover("s1"), "segment")}
    assert {max(c.propensities) for c in choices} == {1.0}


def test_a_candidate_that_goes_moves_only_those_who_had_it():
    people = [hashlib.blake2b(str(k).encode()).digest() for k in range(2000)]
    before = [race(["a", "b", "c"], [1, 1, 1], key) for key in people]
    after = [race(["a", "b"], [1, 1], key) for key in people]
    assert all(new == old for old, new in zip(before, after, strict=True) if old != "c")


def test_a_race_is_won_in_proportion_to_the_weights():
    people = [hashlib.blake2b(str(k).encode()).digest() for k in range(20_000)]
    wins = Counter(race(["a", "b", "never"], [3, 1, 0], key) for key in people)
    assert wins["never"] == 0
    assert wins["a"] / len(people) == pytest.approx(0.75, abs=0.016)


def tasteful(*embeddings: list[float], space: str = "here") -> Offer:
    """An offer whose covers have these embeddings."""
    segments = (NEUTRAL, *(f"s{k}" for k in range(1, len(embeddings))))
    return offer(*segments)._replace(embeddings=pack(embeddings, len(embeddings[0])), space=space)


def softmax(*pull: float) -> Reader:
    return Reader("u", "s1", policy="softmax", taste=Taste("softmax", "here", np.array(pull, np.float32)))


def test_a_softmax_draws_by_taste_and_its_frequencies_are_the_propensities():
    covers, people = tasteful([0, 0], [1, 0], [0, 1]), 20_000
    readers = [replace(softmax(1, 2), user_id=f"user-{k}") for k in range(people)]
    choices = [choose(covers, reader, "i", DAY, exploration=0.1) for reader in readers]
    raised = np.exp([0, 1, 2])
    expected = 0.9 * raised / raised.sum() + 0.1 / 3
    assert choices[0].propensities == pytest.approx(expected, abs=1e-6)
    counts = Counter(choice.cover_segment for choice in choices)
    for segment, propensity in zip((NEUTRAL, "s1", "s2"), expected, strict=True):
        spread = 5 * (propensity * (1 - propensity) / people) ** 0.5
        assert counts[segment] / people == pytest.approx(propensity, abs=spread)
    served = {(choice.cover_segment, choice.served) for choice in choices}
    # The cover of some other segment was liked, or explored, and the answer says which.
    assert served == {(NEUTRAL, "neutral"), ("s1", "segment"), ("s2", "other"), ("s2", "exploration")}


@pytest.mark.parametrize(
    ("covers", "reader"),
    [
        (tasteful([0, 0], [1, 0], [0, 1], space="elsewhere"), softmax(1, 2)),
        (tasteful([0, 0], [1, 0], [float("nan"), 1]), softmax(1, 2)),
        (tasteful([0, 0], [1, 0], [0, 1]), softmax(1, 2, 3)),
        (offer(NEUTRAL, "s1", "s2"), softmax(1, 2)),
        (tasteful([0, 0], [1, 0], [0, 1]), replace(softmax(1, 2), taste=None)),
    ],
)
def test_without_a_taste_that_fits_a_policy_is_that_of_the_segment(covers, reader):
    choice = choose(covers, reader, "i", DAY, exploration=0.3)
    assert dict(zip(choice.candidates, choice.propensities, strict=True))[cover("s1")] == pytest.approx(0.8)


def test_a_page_chooses_as_each_item_alone():
    random = np.random.default_rng(1)
    offers = [tasteful(*random.normal(size=(n, 2)).tolist()) for n in (2, 5, 3)]
    offers.append(offers[0]._replace(space="elsewhere"))
    reader = softmax(1, 2)
    found = page_worths(offers, reader.taste)
    assert [worth is None for worth in found] == [False, False, False, True]
    for number, (each, worth) in enumerate(zip(offers, found, strict=True)):
        alone = choose(each, reader, f"i{number}", DAY, exploration=0.1, blocked=frozenset([cover("s1")]))
        together = choose(
            each, reader, f"i{number}", DAY, exploration=0.1, blocked=frozenset([cover("s1")]), worth=worth
        )
        assert together.cover_id == alone.cover_id
        assert together.propensities == pytest.approx(alone.propensities, abs=1e-6)


def test_switched_off_means_neutral_whatever_the_taste():
    choice = choose(tasteful([0, 0], [9, 9]), softmax(9, 9), "i", DAY, personalization=False)
    assert (choice.cover_segment, choice.propensities) == (NEUTRAL, (1.0,))


def token_of(segments: int, item_id: str = "i", user: str = "u") -> tuple[str, str | None]:
    wide = offer(NEUTRAL, *(f"s{k}" for k in range(segments - 1)))
    choice = choose(wide, Reader(user, "s1"), item_id, DAY, exploration=0.1)
    token = sign(choice, KEY, item_id=item_id, generation=7, day=DAY, policy="segment", segment_id="s1")
    assert token is not None
    return token, choice.cover_id


def test_a_token_says_what_was_decided():
    token, chosen = token_of(4)
    decision = verify(token, [b"an older key", KEY])
    assert (decision.policy, decision.generation, decision.item_id) == ("segment", 7, "i")
    assert (decision.day, decision.segment_id, decision.chosen) == ("2026-11-21", "s1", chosen)
    assert decision.propensities == (0.025, 0.025, 0.925, 0.025) or sum(decision.propensities) == pytest.approx(1)
    assert decision.propensity == dict(zip(decision.candidates, decision.propensities, strict=True))[chosen[:12]]
    assert decision.count == 4


@pytest.mark.parametrize("segments", [40, 64, 500])
def test_a_token_stays_short_however_many_covers_there_are(segments):
    token, chosen = token_of(segments, item_id="i" * 128)
    assert len(token) < 4096
    decision = verify(token, KEY)
    assert decision.count == segments
    assert len(decision.candidates) == min(segments, 64)
    assert decision.chosen == chosen


def test_the_reference_image_is_our_copy_if_there_is_one_and_has_no_token():
    copied = Offer((NEUTRAL, "s1"), (cover("copy"), cover("copy")), ("reference", "reference"))
    for described, blocked, expected in (
        (offer(), (), None),
        (copied, (), cover("copy")),
        (copied, (cover("copy"),), None),
    ):
        choice = choose(described, Reader("u", "s1"), "i", DAY, exploration=1.0, blocked=frozenset(blocked))
        assert (choice.cover_id, choice.served, choice.candidates) == (expected, "reference", ())
        assert sign(choice, KEY, item_id="i", generation=1, day=DAY, policy="segment") is None


def test_prefixes_are_long_enough_to_be_distinct():
    assert short_ids(["a" * 64, "a" * 13 + "b" * 51]) == ["a" * 14, "a" * 13 + "b"]
    assert [len(short) for short in short_ids([cover("a"), cover("b")])] == [12, 12]


def test_a_forged_or_damaged_token_is_refused():
    token, _ = token_of(4)
    body, _, mac = token.partition(".")
    richer = base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + "==").replace(b'"g":7', b'"g":8')).rstrip(b"=")
    for forged in (
        f"{richer.decode()}.{mac}",
        body,
        f"{body}.",
        f".{mac}",
        token[:-1],
        token + "A",
        token + "=",
        "",
        "ü",
    ):
        with pytest.raises(BadToken):
            verify(forged, KEY)
    for k in range(len(token)):
        flipped = token[:k] + ("A" if token[k] != "A" else "B") + token[k + 1 :]
        with pytest.raises(BadToken):
            verify(flipped, KEY)
    with pytest.raises(BadToken):
        verify(token, b"somebody else's key")


@given(st.one_of(st.text(max_size=200), st.text("Ab9-_.=", max_size=80)))
def test_garbage_is_a_bad_token_and_nothing_else(garbage):
    with pytest.raises(BadToken):
        verify(garbage, KEY)
