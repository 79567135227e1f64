"""Which threads torch gets: the last word anywhere counts for threads to come."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from workers.covers.studio import give_threads


@pytest.mark.parametrize(("threads", "own"), [(3, 3), (0, 2)])  # 0: torch's own choice
def test_only_the_generator_splits_its_work(threads: int, own: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1) as drawer, ThreadPoolExecutor(1) as judges:
            give_threads(drawer, threads)
            judged = judges.submit(torch.get_num_threads).result()
            assert (drawer.submit(torch.get_num_threads).result(), judged, torch.get_num_threads()) == (own, 1, 1)
    finally:
        torch.set_num_threads(before)
