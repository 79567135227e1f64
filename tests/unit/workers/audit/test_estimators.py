"""Off-policy estimates against a world whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from workers.audit.estimators import Log, estimate, unsupported

COVERS, SEGMENTS, ITEMS = 4, 3, 5
WORLD = np.random.default_rng(7)
CLICKS = WORLD.uniform(0.02, 0.5, (SEGMENTS, ITEMS, COVERS))
TARGET = np.exp(8 * CLICKS) / np.exp(8 * CLICKS).sum(2, keepdims=True)
TRUTH = float((TARGET * CLICKS).sum(2).mean())


def logged(seed: int, people: int = 150, each: int = 10, exploration: float = 0.3) -> tuple[Log, np.ndarray]:
    """People of a segment see items; the log shows the first cover and explores the others. Choices are sticky."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(people), each)
    segment = rng.integers(0, SEGMENTS, people)[user]
    item = rng.integers(0, ITEMS, len(user))
    propensity = np.full(COVERS, exploration / COVERS)
    propensity[0] += 1 - exploration
    shown = rng.choice(COVERS, (people, ITEMS), p=propensity)[user, item]
    reward = (rng.random(len(user)) < CLICKS[segment, item, shown]).astype(float)
    candidate = np.arange(COVERS)[None]
    cover = item[:, None] * COVERS + candidate
    log = Log(
        user,
        reward,
        np.arange(len(user) + 1) * COVERS,
        np.arange(len(user)) * COVERS + shown,
        np.tile(propensity, len(user)),
        cover.ravel(),
        (segment[:, None] * ITEMS * COVERS + cover).ravel(),
    )
    return log, TARGET[segment, item].ravel()


def test_the_intervals_cover_the_truth_as_often_as_they_say():
    held = {"ips": 0, "snips": 0, "dr": 0}
    widths = {name: [] for name in held}
    worlds = 200
    for seed in range(worlds):
        found = estimate(*logged(seed), draws=300)
        for name in held:
            value = getattr(found, name)
            held[name] += value.low <= TRUTH <= value.high
            widths[name].append(value.high - value.low)
    # 95 % nominal; a bootstrap of 150 people is a little narrow, and 200 worlds say it within 1.5 points.
    assert all(count / worlds > 0.89 for count in held.values()), held
    assert np.mean(widths["dr"]) < np.mean(widths["ips"])


def test_the_estimators_have_no_bias_to_speak_of_and_the_plain_rate_has():
    found = [estimate(*logged(seed), draws=2) for seed in range(150)]
    for name in ("ips", "snips", "dr"):
        values = np.array([getattr(each, name).value for each in found])
        assert values.mean() == pytest.approx(TRUTH, abs=4 * values.std() / len(values) ** 0.5 + 0.002)
    assert abs(np.mean([each.logged.value for each in found]) - TRUTH) > 0.02


def test_the_logged_policy_judged_by_itself_is_what_was_seen():
    log, _ = logged(0)
    found = estimate(log, log.propensity)
    assert found.ips == found.snips == found.logged
    assert found.ess == pytest.approx(len(log))
    assert found.unsupported == pytest.approx(0, abs=1e-12)


def test_what_could_not_have_been_shown_is_counted():
    log, _ = logged(0, exploration=0.0)
    uniform = np.full(len(log.propensity), 1 / COVERS)
    assert unsupported(log, uniform) == pytest.approx(1 - 1 / COVERS)
    assert unsupported(log, log.propensity) == pytest.approx(0, abs=1e-12)
    assert unsupported(log, np.zeros_like(uniform)) == 1


def test_nobodys_own_click_speaks_for_their_estimate():
    log, _ = logged(0)
    half = log.model
    flipped = log.reward.copy()
    first = log.user == 0
    flipped[first] = 1 - flipped[first]
    other = Log(log.user, flipped, log.start, log.shown, log.propensity, log.cover, log.cell).model
    mine = np.repeat(first, COVERS)
    assert (half[mine] == other[mine]).all()
    assert (half != other).any()


def test_an_empty_log_is_refused():
    log, target = logged(0)
    with pytest.raises(ValueError, match="target of shape"):
        estimate(log, target[:-1])
