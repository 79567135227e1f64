"""Policies: what they make of a person and covers, and who falls under which."""

from __future__ import annotations

from collections import Counter
from datetime import date

import numpy as np
import pytest

from icg.preference import Head
from workers.policies import DRAWS, Person, Rule, assigned, pack, probabilities, shares, unpack, worths

DAY = date(2026, 11, 21)
HEAD = Head.start("space", 4)
COVERS = np.eye(4, dtype=np.float32)[:3]


def person(*vector: float, pairs: int = 0, space: str = "space") -> Person:
    return Person(space, np.array(vector, np.float32), pairs)


def test_softmax_is_luces_rule_over_the_heads_scores():
    head = Head("space", np.diag([1.0, 2, 3, 4]), [0.5, 0, 0, 0])
    somebody = person(0.1, 0.2, 0.3, 0)
    taste = Rule(temperature=0.5).taste("softmax", somebody, head, "u", DAY)
    assert taste is not None
    found = probabilities(taste, COVERS)
    raised = np.exp(head.score(somebody.vector, COVERS) / 0.5)
    assert found == pytest.approx(raised / raised.sum(), rel=1e-5)
    assert sum(found) == pytest.approx(1, abs=1e-12)


def test_thompson_counts_how_often_a_draw_of_the_posterior_likes_a_cover_best():
    rule = Rule(bound=0.5)
    somebody = person(1, 0.9, 0, 0)
    taste = rule.taste("thompson", somebody, HEAD, "u", DAY)
    assert taste is not None
    assert taste.pull.shape == (4, DRAWS)
    found = probabilities(taste, COVERS)
    assert sum(found) == 1.0
    assert all(p * DRAWS == int(p * DRAWS) for p in found)
    assert taste.pull.mean(1) == pytest.approx(somebody.vector, abs=5 * 0.34 / DRAWS**0.5)
    # The stream belongs to person and day: every replica makes the same of them.
    again = rule.taste("thompson", somebody, HEAD, "u", DAY)
    assert again is not None
    assert (again.pull == taste.pull).all()
    other = rule.taste("thompson", somebody, HEAD, "v", DAY)
    assert other is not None
    assert (other.pull != taste.pull).any()


def test_thompson_grows_sure_with_what_it_has_seen():
    best = []
    for pairs in (0, 100, 100_000):
        taste = Rule(bound=1.0).taste("thompson", person(1, 0.9, 0, 0, pairs=pairs), HEAD, "u", DAY)
        assert taste is not None
        found = probabilities(taste, COVERS)
        assert found is not None
        best.append(found[0])
    assert best[0] < best[1] < best[2] == 1.0


@pytest.mark.parametrize("policy", ["softmax", "thompson"])
def test_a_page_makes_of_each_item_what_the_item_makes_alone(policy):
    random = np.random.default_rng(0)
    sizes = (3, 1, 5, 2, 5)
    items = [random.normal(size=(n, 4)).astype(np.float16) for n in sizes]
    items[4][1] = np.nan
    items[2][3] = items[2][1]  # equally good: the first is shown
    data = [item.astype("<f2").tobytes() for item in items]
    data[3] = data[3][:-2]  # no rows of this length
    taste = Rule(bound=1.0).taste(policy, person(1, 0.9, 0.2, 0), HEAD, "u", DAY)
    assert taste is not None
    found = worths(taste, [*data, b""], [*sizes, 0])
    assert [worth is None for worth in found] == [False, False, False, True, False, True]
    for item, worth in zip(items[:3], found, strict=False):
        assert worth is not None
        assert worth.shares == pytest.approx(probabilities(taste, item.astype(np.float32)), abs=1e-6)
        assert worth.shares == shares(policy, worth.rows)
    assert found[4] is not None
    assert found[4].shares is None
    assert shares(policy, found[4].rows[[0, 2, 3]]) is not None


@pytest.mark.parametrize(
    ("who", "head"),
    [(None, HEAD), (person(1, 0, 0, 0), None), (person(1, 0, 0, 0, space="other"), HEAD), (person(1, 0), HEAD)],
)
@pytest.mark.parametrize("policy", ["softmax", "thompson"])
def test_vectors_of_two_spaces_are_never_mixed(policy, who, head):
    assert Rule().taste(policy, who, head, "u", DAY) is None


def test_embeddings_survive_their_row():
    rows = unpack(pack([[0.5, -0.25], None, [1, 2, 3]], 2), 3)
    assert rows is not None
    assert rows[0].tolist() == [0.5, -0.25]
    assert np.isnan(rows[1:]).all()
    assert unpack(b"", 3) is None
    assert unpack(b"12345", 2) is None
    assert unpack(b"", 0) is None


def test_a_split_gives_each_arm_its_share_of_people_and_keeps_them_there():
    split = {"softmax": 0.3, "thompson": 0.2}
    arms = {k: assigned("segment", f"user-{k}", None, {}, split) for k in range(10_000)}
    shares = Counter(arms.values())
    assert {name: shares[name] / 10_000 for name in shares} == pytest.approx(
        {"softmax": 0.3, "thompson": 0.2, "segment": 0.5}, abs=0.025
    )
    wider = {k: assigned("segment", f"user-{k}", None, {}, {"softmax": 0.5, "thompson": 0.2}) for k in range(10_000)}
    assert all(wider[k] == "softmax" for k, arm in arms.items() if arm == "softmax")


def test_a_surface_decides_before_the_split():
    surfaces = {"home": "thompson"}
    assert assigned("segment", "u", "home", surfaces, {"softmax": 1.0}) == "thompson"
    assert assigned("segment", "u", "mail", surfaces, {"softmax": 1.0}) == "softmax"
    assert assigned("segment", None, None, surfaces, {"softmax": 1.0}) == "segment"
