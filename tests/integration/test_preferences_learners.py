"""One, two and four learners over the same four partitions, and one trainer behind a real broker."""

from __future__ import annotations

import threading

import numpy as np

from bench.taste_world import KEY, TasteWorld, columns
from workers.events import PreferencePairs
from workers.messaging import Follower, Producer
from workers.preferences import pairs
from workers.preferences.decode import Columns
from workers.preferences.judging import ordered
from workers.preferences.pairs import interest, margins_of
from workers.preferences.propensity import Tokens
from workers.preferences.trainer import Trainer
from workers.settings import Kafka

PARTITIONS = 4
TOPIC = PreferencePairs.topic


def split(batch: Columns) -> list[Columns]:
    """By user, as Kafka's keys do."""
    partition = np.array([hash_of(user) % PARTITIONS for user in batch.user])
    parts = []
    for number in range(PARTITIONS):
        part = batch.take(np.flatnonzero(partition == number))
        part.offset[:] = np.arange(len(part))
        parts.append(part)
    return parts


def hash_of(user: str) -> int:
    return int(user.rpartition("-")[2])


def train(kafka: Kafka, learners: int, source: int) -> tuple[Trainer, int]:
    """So many threads, each with its share of the partitions; the trainer reads what they send as it arrives.

    Args:
        source: number of the first partition, so that messages of another run are told apart.
    """
    world = TasteWorld(people_count=200, appeal=-1.5)
    parts = split(columns(world.values(20_000)))
    sent = [0] * PARTITIONS
    failed: list[BaseException] = []

    def work(member: int) -> None:
        producer = Producer(kafka, f"learner-{member}")
        try:
            mine = range(member, PARTITIONS, learners)
            running = {number: world.learner(partition=source + number) for number in mine}
            tokens = Tokens([KEY])
            for start in range(0, max(map(len, parts)), 500):
                for number, learner in running.items():
                    batch = parts[number].span(start, min(start + 500, len(parts[number])))
                    for made in learner.take(batch, tokens.weights(batch), world) if len(batch) else []:
                        producer.send(TOPIC, pairs.encode(made, "2026-01-01T00:00:00Z"), None, None, 0)
                        sent[number] += 1
            assert producer.flush(60) == 0
        except BaseException as error:
            failed.append(error)
        finally:
            producer.close()

    threads = [threading.Thread(target=work, args=(member,)) for member in range(learners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not failed
    trainer, head = Trainer.of(world.head()), world.head()
    follower = Follower(kafka, TOPIC)
    while not follower.caught_up():
        for message in follower.poll(1000, 1.0):
            made = pairs.decode(message.value)
            if source <= made.partition < source + PARTITIONS:
                trainer.take(made, head)
    follower.close()
    assert {number: sequence + 1 for number, sequence in trainer.seen.items()} == {
        source + number: count for number, count in enumerate(sent)
    }
    return trainer, sum(sent)


def test_however_many_learners_share_the_partitions_the_head_is_as_good(own_kafka: Kafka) -> None:
    losses, orders, messages = [], [], []
    for run, learners in enumerate((1, 2, 4)):
        trainer, sent = train(own_kafka, learners, run * PARTITIONS)
        rows = trainer.held.held()
        margin = margins_of(trainer.average, rows)
        losses.append(float(np.logaddexp(0, -(margin + interest(trainer.interest, rows))).mean()))
        orders.append(float(ordered(margin).mean()))
        messages.append(sent)
        start = float(np.logaddexp(0, -margins_of(trainer.start, rows)).mean())
    assert messages[0] > 60
    assert len(set(messages)) == 1  # the same pairs, whoever made them
    assert max(losses) < start - 0.02
    assert max(losses) - min(losses) < 0.02
    assert max(orders) - min(orders) < 0.05
