"""On planted people, whose right answer is known; the real ones are measured by bench/people.py."""

import numpy as np
import pytest

from icg.evaluation import films, votes
from icg.evaluation.bootstrap import Interval, of_means, over_pairs, over_rows

PEOPLE, PICTURES, DIMENSION = 60, 50, 3
SETTINGS = votes.Settings(strength=1.0, taste=1.0, bound=5.0, dimension=DIMENSION)


def cast(taste: float, count: int, seed: int) -> tuple[votes.Votes, np.ndarray]:
    rng = np.random.default_rng(0)
    space = votes.axes(rng.normal(size=(PICTURES, DIMENSION)), DIMENSION)
    strengths, tastes = rng.normal(size=PICTURES), taste * rng.normal(size=(PEOPLE, DIMENSION))
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(PEOPLE), count)
    one, other = rng.integers(PICTURES, size=(2, len(person)))
    other = np.where(one == other, (other + 1) % PICTURES, other)
    margin = strengths[one] - strengths[other] + (tastes[person] * (space[one] - space[other])).sum(axis=1)
    wins = rng.random(len(person)) < 1 / (1 + np.exp(-margin))
    return votes.Votes(person, np.where(wins, one, other), np.where(wins, other, one)), space


def gain(taste: float, permuted: bool = False) -> Interval:
    (fit, space), (test, _) = cast(taste, 24, 1), cast(taste, 24, 2)
    model = votes.fit(fit.permuted(3) if permuted else fit, PEOPLE, space, SETTINGS)
    better = votes.likelihoods(model.margins(test)) - votes.likelihoods(model.margins(test, personal=False))
    return over_rows(votes.by_person(better, test))


def test_a_taste_that_is_there_is_found_and_goes_with_the_ids() -> None:
    assert gain(1.5).low > 0.02
    assert gain(1.5).gain == gain(1.5).value
    assert gain(1.5, permuted=True).high < 0


def test_a_taste_that_is_not_there_gains_nothing() -> None:
    assert gain(0.0).high < 0.005


def test_settings_shrink_a_taste_that_is_not_there() -> None:
    attributes = np.random.default_rng(5).normal(size=(PICTURES, 8))
    (fit, _), order = cast(0.0, 24, 1), np.tile(np.arange(24), PEOPLE)
    none = votes.chosen_settings(fit, order, PEOPLE, attributes)
    assert none.taste >= 30
    assert none.bound * np.sqrt(none.dimension) < 3


def test_a_residual_is_shortened_to_its_bound_and_not_lengthened() -> None:
    assert np.linalg.norm(votes.bounded(np.array([3.0, 4.0]), 1.0)) == pytest.approx(1)
    assert (votes.bounded(np.array([0.3, 0.4]), 1.0) == [0.3, 0.4]).all()
    assert (votes.bounded(np.zeros(2), 1.0) == 0).all()


def test_nobody_keeps_their_own_votes() -> None:
    fit, _ = cast(1.0, 4, 1)
    assert (fit.permuted(0).people != fit.people).all()
    assert (np.bincount(fit.permuted(0).people) == 4).all()


def test_sessions_are_read_as_the_bench_says() -> None:
    def vote(left: int, right: int, chosen: int) -> dict[str, int]:
        return {"imL": left, "imR": right, "imC": chosen}

    sessions: list[dict[str, object]] = [
        {"acc": False, "vot": [vote(0, 1, 0)]},
        {"acc": True, "vot": [vote(0, 1, 1), vote(2, 3, -1), vote(1, 0, 1), vote(3, 2, 3), vote(4, 5, 5)]},
    ]
    read, order, early = votes.read(sessions, fitted=2)
    # The undecided vote goes; so do later votes on pairs seen before, the undecided pair's among them.
    assert read.chosen.tolist() == [1, 5]
    assert read.rejected.tolist() == [0, 4]
    assert order.tolist() == [0, 4]
    assert early.tolist() == [True, False]


def watched(groups: int, seed: int) -> films.Log:
    """Each person likes films of one group, in random order; 20 people and 12 films a group."""
    rng = np.random.default_rng(seed)
    people = np.repeat(np.arange(20 * groups), 8)
    mine = np.concatenate(
        [rng.choice(12, size=8, replace=False) + 12 * (person // 20) for person in range(20 * groups)]
    )
    return films.Log(people, mine, np.ones(len(people), bool))


def test_a_taste_that_changed_after_the_import_is_learned_by_the_residual() -> None:
    # Until the import everybody watches one group of films, after it the next: only a residual can know.
    old, new = watched(4, 0), watched(4, 1)
    new = films.Log(new.people, (new.films + 12) % 48, new.liked)
    share = new.share()
    after, test = new.where(share < 0.5), new.where(share >= 0.5)
    seen = films.Log(*(np.concatenate(pair) for pair in zip(old, after, strict=True)))
    given = films.factorise(films.matrix(old, 80, 48), 8, 5.0, 1.0)
    free, held = films.learn(old, after, given, [films.Taste(1.0, 10.0), films.Taste(1.0, 0.0)])
    found = {who: films.ndcg(free.scores(who), seen, test)[1].mean() for who in ("imported", "global", "personal")}
    # 8 of the new group's 12 films are left, four of them wanted: a perfect knowledge of groups gives about 0.5.
    assert found["personal"] > found["imported"] + 0.2
    assert found["personal"] > found["global"] + 0.2
    assert films.ndcg(np.roll(free.scores("personal"), 20, axis=0), seen, test)[1].mean() < found["personal"] - 0.2
    assert (held.scores("personal") == held.scores("no_residual")).all()
    assert films.chosen_taste(old, after, given).bound > 0


def test_factors_are_chosen_that_rank_what_comes_next() -> None:
    log = watched(4, 0)
    before, after = log.where(log.share() < 0.75), log.where(log.share() >= 0.75)
    chosen = films.chosen_factors(before, after, 80, 48)
    given = films.factorise(films.matrix(before, 80, 48), chosen.factors, chosen.weight, chosen.ridge)
    found = films.ndcg(given[0] @ given[1].T, before, after)[1].mean()
    assert found > films.ndcg(films.popularity(before, 80, 48), before, after)[1].mean() + 0.2


def test_ndcg_is_one_for_the_wanted_first_and_leaves_seen_films_out() -> None:
    seen = films.Log(np.array([0]), np.array([0]), np.array([True]))
    later = films.Log(np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    people, perfect = films.ndcg(np.array([[9.0, 5.0, 1.0, 0.0]]), seen, later, top=2)
    assert people.tolist() == [0]
    assert perfect.tolist() == [1.0]
    assert films.ndcg(np.array([[9.0, 1.0, 5.0, 0.0]]), seen, later, top=2)[1] == pytest.approx([1 / np.log2(3)])


def test_a_factorisation_gives_back_what_was_watched() -> None:
    log = watched(2, 1)
    matrix = films.matrix(log, 40, 24)
    people, space = films.factorise(matrix, 6, 10.0, 0.1)
    scores = people @ space.T
    assert scores[matrix > 0].min() > scores[matrix == 0].mean() + 0.3


def test_intervals() -> None:
    rng = np.random.default_rng(0)
    found = over_rows(rng.normal(1.0, 1.0, 400))
    assert found.low < 1.0 < found.high
    assert found.high - found.low == pytest.approx(4 * 1 / np.sqrt(400), rel=0.2)
    assert over_rows(rng.normal(0.0, 1.0, 400)).gain == 0
    # Two concepts that differ: no number of people makes them certain.
    table = np.tile([0.0, 1.0], (500, 1))
    assert over_pairs(table).low == 0
    assert over_pairs(table).high == pytest.approx(1)
    with pytest.raises(ValueError, match="nothing to resample"):
        over_pairs(np.zeros((0, 3)))
    ratio = of_means(np.stack([np.full((5, 5), 3.0), np.full((5, 5), 2.0)]), lambda m: m[0] / m[1])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.5, 1.5, 1.5))
