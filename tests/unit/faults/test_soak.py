import os
from pathlib import Path

import pytest

from tests.faults.soak import Sample, figures, growth, sample


def steady(count: int = 100, rss: int = 10**8) -> list[Sample]:
    """As services are: a little up and down, and more at the beginning."""
    return [Sample(rss + 10**5 * (n % 3) + 10**7 * (n < 10), 40 + n % 2, 12) for n in range(count)]


def test_what_stands_still_is_no_leak() -> None:
    assert all(figure.reached for figure in figures({"audit": steady()}))


def test_a_leak_of_each_kind_is_seen() -> None:
    leaking = {
        "memory_growth": [Sample(each.rss + 10**5 * n, each.files, each.threads) for n, each in enumerate(steady())],
        "files": [Sample(each.rss, each.files + n // 10, each.threads) for n, each in enumerate(steady())],
        "threads": [Sample(each.rss, each.files, each.threads + n // 10) for n, each in enumerate(steady())],
    }
    for what, samples in leaking.items():
        assert [figure.name for figure in figures({"audit": samples}) if not figure.reached] == [f"audit_{what}"]


def test_too_short_a_run_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="3 samples are too few"):
        growth(steady(3))


def test_a_process_is_sampled(tmp_path: Path) -> None:
    before = sample(os.getpid())
    with (tmp_path / "file").open("w"):
        after = sample(os.getpid())
    assert before.rss > 2**20
    assert after.files == before.files + 1
    assert after.threads >= 1
