"""One, two and four learners over the same four partitions, and one trainer behind a real broker."""

from __future__ import annotations

from bench.learners import LEARNERS, PARTITIONS, measure, split
from bench.taste_world import TasteWorld
from workers.settings import Kafka

WORLD = {"people_count": 200, "appeal": -1.5}


def test_however_many_learners_share_the_partitions_the_head_is_as_good(own_kafka: Kafka) -> None:
    parts = split(TasteWorld(**WORLD).values(20_000))
    runs = [
        measure(own_kafka, WORLD, parts, learners, run * PARTITIONS, threads=True)
        for run, learners in enumerate(LEARNERS)
    ]
    assert runs[0].messages > 60
    assert len({run.messages for run in runs}) == 1  # the same pairs, whoever made them
    assert max(run.loss for run in runs) < runs[0].loss_before - 0.02
    assert max(run.loss for run in runs) - min(run.loss for run in runs) < 0.02
    assert max(run.order for run in runs) - min(run.order for run in runs) < 0.05
    assert all(run.cpu > 0 and run.wall > 0 for run in runs)
