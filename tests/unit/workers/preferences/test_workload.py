import itertools

import numpy as np

from bench.workload import Workload
from workers.preferences.decode import CLICK, decode


def test_the_same_seed_gives_the_same_bytes_however_they_are_taken() -> None:
    whole = next(Workload().events(30_000, 30_000))
    pieces = list(itertools.chain.from_iterable(Workload().events(30_000, 7_000)))
    assert pieces == whole
    assert next(Workload(seed=21).events(30_000, 30_000)) != whole


def test_it_is_the_workload_that_the_figures_are_defined_on() -> None:
    values = next(Workload().events(200_000, 200_000))
    batch, bad = decode(next(Workload().messages(200_000, 200_000)))
    assert bad == []
    assert 280 < sum(map(len, values)) / len(values) < 330
    assert abs((batch.kind == CLICK).mean() - 0.03) < 0.004
    assert abs(1 - len(np.unique(batch.key[:, 0])) / len(batch) - 0.01) < 0.002
    late = batch.time < np.maximum.accumulate(batch.time) - 600_000_000
    assert abs(late.mean() - 0.01) < 0.002
    counts = np.sort(np.unique(batch.item, return_counts=True)[1])[::-1]
    assert abs(np.polyfit(np.log(np.arange(1, 101)), np.log(counts[:100]), 1)[0] + 1.1) < 0.05
