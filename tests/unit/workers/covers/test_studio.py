"""Which threads torch gets, in a process of its own: the last word anywhere counts for threads to come."""

import subprocess
import sys

SCRIPT = """
from concurrent.futures import ThreadPoolExecutor
import torch
from workers.covers.studio import give_threads

torch.set_num_threads(2)
for threads in (0, 3):  # 0: torch's own choice
    drawer, judges = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    give_threads(drawer, threads)
    judged = judges.submit(torch.get_num_threads).result()
    print(drawer.submit(torch.get_num_threads).result(), judged, torch.get_num_threads())
"""


def test_only_the_generator_splits_its_work() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "1", "1", "3", "1", "1"]
