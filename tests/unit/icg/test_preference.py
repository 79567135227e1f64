import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from icg.exceptions import BadWeights
from icg.preference import Head, estimate, logistic

SPACE = "5" * 64
D = 6


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def head(rng) -> Head:
    return Head(SPACE, np.eye(D) + 0.3 * rng.standard_normal((D, D)), rng.standard_normal(D))


@pytest.fixture
def pairs(rng):
    return tuple(rng.standard_normal((7, D)).astype(np.float32) for _ in range(3))


def test_a_fresh_head_is_the_inner_product(rng):
    user, cover = rng.standard_normal((2, D))
    assert Head.start(SPACE, D).score(user, cover) == pytest.approx(user @ cover, rel=1e-5)


def test_score_is_its_formula(head, pairs):
    users, covers, _ = pairs
    expected = [u @ head.weight @ c + head.bias @ c for u, c in zip(users, covers, strict=True)]
    np.testing.assert_allclose(head.score(users, covers), expected, rtol=1e-4, atol=1e-5)


def test_score_broadcasts_users_against_covers(head, pairs):
    users, covers, _ = pairs
    grid = head.score(users[:, None], covers[None, :3])
    assert grid.shape == (7, 3)
    assert grid[4, 2] == pytest.approx(float(head.score(users[4], covers[2])), rel=1e-4, abs=1e-5)


def test_loss_of_a_decided_pair_is_its_margin(head, pairs):
    users, chosen, rejected = pairs
    assert head.loss(1e4 * users[:1], chosen[:1], chosen[:1]) == pytest.approx(np.log(2))
    far = head.loss(1e4 * users, chosen, rejected)
    assert np.isfinite(far)
    assert far == pytest.approx(np.maximum(-head.margins(1e4 * users, chosen, rejected), 0).mean(), rel=1e-3)


def test_gradient_is_the_finite_difference(head, pairs, rng):
    users, chosen, rejected = pairs
    weights = rng.random(7).astype(np.float32)
    gradient = head.gradient(users, chosen, rejected, weights)
    assert gradient.loss == pytest.approx(head.loss(users, chosen, rejected, weights), rel=1e-5)

    def difference(array: np.ndarray, place: tuple[int, ...], loss) -> float:
        old, values = array[place], []
        for step in (1e-2, -1e-2):
            array[place] = old + step
            values.append(loss())
        array[place] = old
        return (values[0] - values[1]) / 2e-2

    def whole() -> float:
        return head.loss(users, chosen, rejected, weights)

    for place in ((0, 0), (2, 5), (4, 1)):
        assert gradient.weight[place] == pytest.approx(difference(head.weight, place, whole), abs=2e-4)
    assert gradient.bias[3] == pytest.approx(difference(head.bias, (3,), whole), abs=2e-4)
    own = difference(users, (5, 2), lambda: head.loss(users[5], chosen[5], rejected[5]))
    assert gradient.users[5, 2] == pytest.approx(own, abs=2e-4)


def test_a_weight_of_two_is_the_pair_twice(head, pairs):
    users, chosen, rejected = pairs
    twice = [np.concatenate([rows, rows[:1]]) for rows in pairs]
    weighted = head.gradient(users, chosen, rejected, [2, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(weighted.weight, head.gradient(*twice).weight, atol=1e-5)


def test_steps_learn_who_likes_what(rng):
    head = Head.start(SPACE, D)
    truth = rng.standard_normal((D, D))
    users, first, second = rng.standard_normal((3, 2000, D)).astype(np.float32)
    better = ((users @ truth) * (first - second)).sum(-1) > 0
    chosen, rejected = np.where(better[:, None], [first, second], [second, first])
    before = (head.margins(users, chosen, rejected) > 0).mean()
    losses = [head.step(users, chosen, rejected, rate=0.5) for _ in range(100)]
    assert losses[-1] < losses[0] / 2
    assert (head.margins(users, chosen, rejected) > 0).mean() > max(before, 0.9)


def test_decay_pulls_back_to_the_start(head, pairs):
    users, chosen, _ = pairs
    for _ in range(200):
        head.step(users, chosen, chosen, rate=0.5, decay=0.1)
    np.testing.assert_allclose(head.weight, np.eye(D), atol=1e-3)
    np.testing.assert_allclose(head.bias, 0, atol=1e-3)


def test_a_copy_learns_apart(head, pairs):
    twin = head.copy()
    twin.step(*pairs)
    assert not np.array_equal(twin.weight, head.weight)


def test_saved_and_loaded_is_the_same(head, tmp_path):
    head.save(tmp_path)
    loaded = Head.load(tmp_path)
    assert loaded.space == SPACE
    assert np.array_equal(loaded.weight, head.weight)
    assert np.array_equal(loaded.bias, head.bias)


def test_wrong_shapes_are_named(head, pairs):
    with pytest.raises(ValueError, match=r"users of shape \(7, 5\): the last dimension must be 6"):
        head.score(pairs[0][:, :5], pairs[1])
    with pytest.raises(ValueError, match=r"W has shape \(6, 5\)"):
        Head(SPACE, np.zeros((6, 5)), np.zeros(6))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("weight", np.full((D, D), np.nan, np.float32), "holds NaN"),
        ("weight", np.zeros((D, D + 1), np.float32), r"shapes \(6, 7\) and \(6,\), its config 6"),
        ("bias", None, "cannot be read"),
    ],
)
def test_bad_weights_are_refused(head, tmp_path, name, value, reason):
    head.save(tmp_path)
    tensors = load_file(tmp_path / "head.safetensors") | {name: value}
    save_file({key: array for key, array in tensors.items() if array is not None}, tmp_path / "head.safetensors")
    with pytest.raises(BadWeights, match=reason):
        Head.load(tmp_path)


def test_the_estimate_is_the_optimum_and_its_prior_bounds_it() -> None:
    rng = np.random.default_rng(0)
    features, offset = rng.normal(size=(30, 6)), rng.normal(size=30)
    u = logistic(features, offset, 0.5)
    slope = 0.5 * u - features.T @ (1 / (1 + np.exp(features @ u + offset)))
    assert np.abs(slope).max() < 1e-6
    assert np.linalg.norm(logistic(features, offset, 50.0)) < np.linalg.norm(u) / 3
    assert (estimate(Head.start("s", 6), np.zeros((0, 6)), np.zeros((0, 6))) == 0).all()
    with pytest.raises(ValueError, match="precision"):
        logistic(features, offset, 0.0)
    with pytest.raises(ValueError, match="is wanted"):
        estimate(Head.start("s", 6), features[:, :5], features[:, :5])


def test_an_overshooting_start_is_caught() -> None:
    # A hundred equal, huge differences: the full Newton step from zero overshoots by far.
    u = logistic(np.full((100, 1), 1000.0), np.full(100, -5000.0), 1e-6)
    assert 5 < u[0] < 5.1
