import numpy as np

from workers.preferences.decode import keys_of
from workers.preferences.sample import BURST, LEAST, Budget, drawn

SECOND = 1_000_000


def hashes(n: int, salt: str = "") -> np.ndarray:
    return keys_of([f"{salt}{number}" for number in range(n)])[:, 1]


def sampled(pairs: int, per_second: float, rate: float, salt: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Importance of each pair, whether it was sent, and with what chance."""
    importance = np.random.default_rng(0).lognormal(0, 1, pairs).astype(np.float32)
    budget, keys = Budget(rate), hashes(pairs, salt)
    sent, chance = np.zeros(pairs, bool), np.zeros(pairs)
    for start in range(0, pairs, 32):
        part = slice(start, start + 32)
        chance[part] = budget.chances(importance[part], int(start / per_second * SECOND))
        sent[part] = drawn(keys[part], chance[part])
        budget.spend(int(sent[part].sum()))
    return importance, sent, chance


def test_sums_over_the_sample_keep_their_expectation() -> None:
    found = []
    for salt in range(60):
        importance, sent, chance = sampled(20_000, 1000.0, 20.0, f"{salt}/")
        values = np.sin(np.arange(20_000) / 5000) + 2  # of what kind does not matter
        found.append(float((importance * values / chance)[sent].sum() / (importance * values).sum()))
    assert 0.1 < sent.mean() < 0.6  # so most were left out
    assert abs(np.mean(found) - 1) < 4 * np.std(found) / np.sqrt(len(found))
    assert np.std(found) < 0.1
    # Without the division by the chance it would be far off: what is likelier to be sent weighs more.
    assert abs(float((importance * values)[sent].sum() / (importance * values).sum()) - 1) > 0.2


def test_what_is_sent_is_bounded_by_event_time_whatever_the_traffic() -> None:
    pairs, per_second, rate = 200_000, 2000.0, 100.0
    importance, sent, _ = sampled(pairs, per_second, rate)
    seconds = pairs / per_second
    assert sent.sum() <= BURST + rate * seconds + LEAST * pairs
    assert importance[sent].mean() > 1.3 * importance.mean()  # what matters goes first
    _, quiet, _ = sampled(2000, 5.0, 10.0)
    assert quiet.all()  # under the rate nothing is left out


def test_a_pair_of_no_weight_is_never_sent() -> None:
    assert Budget(1.0).chances(np.array([0, 1], np.float32), 0).tolist() == [0, 1]
