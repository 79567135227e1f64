"""One, two and four learners over the same four partitions, one trainer behind them: `python bench/learners.py`.

    held_out_loss_N    log loss in nats of the trainer's head on pairs of held-out people, with N learners
    held_out_order_N   share of those pairs that the covers' term puts in order
    loss_spread        largest less smallest loss: what the number of learners makes of it
    scaling_N          events a second of N learners over those of one, by the clock: needs N + 1 idle cores
    core_N             events a second of CPU time, of all N together

A simulated audience (`bench/taste_world.py`), partitioned by user as Kafka's keys do it. Each learner is a process that
holds its share of the partitions; all pairs go to partition 0 of `preference-pairs` on the embedded broker and are read
by one trainer in their order of arrival. That order is what differs between the runs.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported

import argparse
import multiprocessing
import queue
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.taste_world import KEY, TasteWorld, columns
from icg.evaluation.report import Figure, report, versions
from workers.embedded import Embedded
from workers.events import PreferencePairs
from workers.messaging import Follower, Producer
from workers.preferences import pairs
from workers.preferences.judging import ordered
from workers.preferences.pairs import interest, margins_of
from workers.preferences.propensity import Tokens
from workers.preferences.trainer import Trainer
from workers.settings import Kafka

PARTITIONS = 4
LEARNERS = (1, 2, 4)
TOPIC = PreferencePairs.topic
BATCH = 500
WAIT = 300.0
"""Seconds for all learners to be done."""


@dataclass(frozen=True)
class Run:
    """What so many learners made of the stream, and how fast."""

    loss: float
    loss_before: float  # of the head that they began with
    order: float
    messages: int  # of pairs
    events: int
    wall: float  # seconds from the first learner's start to the last one's end
    cpu: float  # seconds of all learners' threads that learn


def split(values: list[bytes]) -> list[list[bytes]]:
    """By user."""
    parts: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
    for value, user in zip(values, columns(values).user, strict=True):
        parts[int(user.rpartition("-")[2]) % PARTITIONS].append(value)
    return parts


def measure(
    kafka: Kafka, world: dict[str, Any], parts: list[list[bytes]], learners: int, first: int = 0, *, threads: bool
) -> Run:
    """Let so many learners work, then train on what they sent.

    Args:
        world: arguments of `TasteWorld`.
        first: number of the first partition, so that messages of another run are told apart.
        threads: of this process instead of processes.
    """
    context: Any = threading if threads else multiprocessing.get_context("spawn")
    results: Any = queue.Queue() if threads else context.Queue()
    gate = context.Barrier(learners)
    start: Any = threading.Thread if threads else context.Process
    members = []
    for member in range(learners):
        mine = {first + number: parts[number] for number in range(member, PARTITIONS, learners)}
        members.append(start(target=_learn, args=(kafka, world, mine, gate, results), daemon=True))
    arrived: list[pairs.Pairs] = []
    over = threading.Event()
    # Read as it is sent, because the embedded broker drops what is older than 5 MiB; trained on once all is there.
    reader = threading.Thread(target=_collect, args=(kafka, over, arrived), daemon=True)
    for each in (reader, *members):
        each.start()
    try:
        done = [results.get(timeout=WAIT) for _ in members]
    finally:
        over.set()
    for each in (*members, reader):
        each.join()
    failed = [each for each in done if isinstance(each, str)]
    if failed:
        raise RuntimeError(f"a learner failed: {failed[0]}")
    sent: dict[int, int] = {}
    for _, _, _, counts in done:
        sent |= counts
    here = TasteWorld(**world)
    trainer, head = Trainer.of(here.head()), here.head()
    for made in arrived:
        if first <= made.partition < first + PARTITIONS:
            trainer.take(made, head)
    if {number: sequence + 1 for number, sequence in trainer.seen.items()} != {n: c for n, c in sent.items() if c}:
        raise RuntimeError(f"sent {sent}, arrived {trainer.seen}")
    rows = trainer.held.held()
    margin = margins_of(trainer.average, rows)
    return Run(
        loss=float(np.logaddexp(0, -(margin + interest(trainer.interest, rows))).mean()),
        loss_before=float(np.logaddexp(0, -margins_of(trainer.start, rows)).mean()),
        order=float(ordered(margin).mean()),
        messages=sum(sent.values()),
        events=sum(map(len, parts)),
        wall=max(each[1] for each in done) - min(each[0] for each in done),
        cpu=sum(each[2] for each in done),
    )


def _collect(kafka: Kafka, over: threading.Event, arrived: list[pairs.Pairs]) -> None:
    follower = Follower(kafka, TOPIC)
    while not (over.is_set() and follower.caught_up()):
        arrived += [pairs.decode(message.value) for message in follower.poll(1000, 0.2)]
    follower.close()


def _learn(kafka: Kafka, world: dict[str, Any], parts: dict[int, list[bytes]], gate: Any, results: Any) -> None:
    """One learner: its partitions in turn, batch by batch, decoded here; what it says is when, how long, how much."""
    try:
        here = TasteWorld(**world)
        producer = Producer(kafka, f"learner-{min(parts)}")
        running = {number: here.learner(partition=number) for number in parts}
        tokens, sent = Tokens([KEY]), dict.fromkeys(parts, 0)
        gate.wait(WAIT)
        began, cpu = time.time(), time.thread_time()
        for start in range(0, max(map(len, parts.values())), BATCH):
            for number, learner in running.items():
                values = parts[number][start : start + BATCH]
                batch = columns(values, first=start)
                for made in learner.take(batch, tokens.weights(batch), here) if values else []:
                    producer.send(TOPIC, pairs.encode(made, "2026-01-01T00:00:00Z"), None, None, 0)
                    sent[number] += 1
        if producer.flush(60):
            raise RuntimeError("the broker does not take the pairs")
        producer.close()
        results.put((began, time.time(), time.thread_time() - cpu, sent))
    except Exception as error:
        gate.abort()
        results.put(f"{type(error).__name__}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=40_000, help="impressions, of all partitions together")
    parser.add_argument("--json", type=Path, help="Write the figures there as well.")
    asked = parser.parse_args()
    world: dict[str, Any] = {"people_count": 400, "appeal": -1.5}
    parts = split(TasteWorld(**world).values(asked.pages))
    runs: dict[int, Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        for learners in LEARNERS:  # a broker for each: an embedded one keeps no more than one run's pairs
            with Embedded(Path(folder) / str(learners), parts=("kafka",)) as servers:
                runs[learners] = measure(servers.kafka, world, parts, learners, threads=False)
    losses = [run.loss for run in runs.values()]
    one = runs[1]
    note = f"simulated, {one.events:,} events, {one.messages:,} messages of pairs; {one.loss_before:.4f} to begin with"
    figures = [Figure("loss_spread", max(losses) - min(losses), most=0.02, note=note)]
    for learners, run in runs.items():
        figures += [
            Figure(f"held_out_loss_{learners}", run.loss),
            Figure(f"held_out_order_{learners}", run.order),
            Figure(f"scaling_{learners}", one.wall / run.wall, note=f"{run.events / run.wall:,.0f} events a second"),
            Figure(f"core_{learners}", run.events / run.cpu, note="every pair is sent, where a service sends a sample"),
        ]
    if not report("One, two and four learners", figures, asked.json, versions("numpy", "confluent-kafka")):
        sys.exit(1)


if __name__ == "__main__":
    main()
