"""What the learner handles a core: `python bench/learn.py --events N --json FILE`.

    events_per_second_core   decode, dedupe, join, tastes, pairs to JSON and back, W and b; a second of CPU time
    vs_decode                the same over decoding alone, with the same decoder
    vs_faust                 our loop over a Faust agent with `noack_take(500)`: same broker, events, decoder and core
    memory_growth            resident memory at the end over that at 1 M events, minus 1 (from 10 M events on, apart)
    push_rows_per_second     Feast, apart: rows of tastes to SQLite; push_lag_p99 while tastes change at a steady pace

All rates are per second of CPU time of the process, one BLAS thread, so that a busy machine does not show in the
ratios. Messages are a preloaded list of raw `confluent_kafka.Message`s; the Faust comparison reads from the embedded
broker, which keeps 5 MiB a partition and so holds 48,000 of them; before those, both readers have learned from 150,000
in memory.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported

import argparse
import gc
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.workload import Workload
from icg.evaluation.report import Figure, report, versions
from icg.preference import Head
from workers.decisions import Choice, sign
from workers.preferences import pairs
from workers.preferences.checkpoint import of_learner, to_learner
from workers.preferences.decode import IMPRESSION, Columns, decode, decode_values
from workers.preferences.judging import Margins
from workers.preferences.learner import Learner, OtherSpace
from workers.preferences.pairs import Floats
from workers.preferences.propensity import Tokens, Weights
from workers.preferences.push import Pusher
from workers.preferences.sample import Budget
from workers.preferences.tastes import Limits, Tastes
from workers.preferences.trainer import Trainer
from workers.preferences.window import Window
from workers.settings import Kafka, Preferences

BATCH = Preferences().batch_events
CHUNK = 100_000  # messages in memory at once where time is measured
HELD = 10_000  # and where memory is: more leave holes behind, and that is not the learner's memory
MILLION = 1_000_000
WARM_EVENTS = 150_000  # read from memory by both readers before the clock starts: a learner that has run for a while
BROKER_EVENTS = 48_000  # 4 partitions of 12,000 x 310 B: under the embedded broker's 5 MiB each
VERDICT_PAIRS = 10_000
TAKE = 500
TURNS = 5
"""Of both readers: they use the machine's memory so differently that one turn's ratio was between 6.7 and 11.9."""
TOPIC = "user-behavior"


class Vectors:
    """`learner.Sources` from memory: what S3 and Feast hold, already cached."""

    def __init__(self, workload: Workload) -> None:
        covers = workload.items * workload.covers
        self._covers, self._people = workload.vectors(covers, 1), workload.vectors(workload.users, 2)
        self._number = {
            workload.cover(item, cover): item * workload.covers + cover
            for item in range(workload.items)
            for cover in range(workload.covers)
        }

    def covers(self, wanted: Sequence[tuple[str, str]], space: str) -> list[Floats | OtherSpace | None]:
        return [self._covers[self._number[cover]] for _, cover in wanted]

    def people(self, user_ids: list[str], space: str, dimension: int) -> Floats:
        return self._people[[int(user[7:]) for user in user_ids]]


class Core:
    """The learner of one partition and the trainer behind it, with the pairs as JSON in between."""

    def __init__(self, workload: Workload, vectors: Vectors) -> None:
        head, limits, rate = Head.start("0" * 64, workload.dimension), Limits(0.05, 0.5), Preferences().pairs_per_second
        window, tastes = Window(600_000_000), Tastes(workload.dimension, limits)
        # As after a restart: the population is known and its tastes have their room, so memory_growth is the stream's.
        tastes.numbers([workload.user(number) for number in range(workload.users)])
        tensors, meta = of_learner(Learner(0, head, 1, window, tastes, Budget(rate)))
        kept = {"horizon": window.horizon, "most": window.most, "shown": window.most_shown}
        self.learner = to_learner(tensors, meta, head, **kept, limits=limits, rate=rate)
        self._tokens = Tokens((b"bench",))
        self.trainer = Trainer.of(head)
        self._vectors, self._released = vectors, head

    def take(self, batch: Columns) -> None:
        weights = self._tokens.weights(batch)
        # The workload chooses covers uniformly, and its events carry no token to say so: what one costs is apart.
        weights = Weights(np.ones_like(weights.choice), weights.position, weights.bad)
        for made in self.learner.take(batch, weights, self._vectors):
            self.trainer.take(pairs.decode(pairs.encode(made, "2026-01-01T00:00:00Z")), self._released)
        if self.trainer.since >= VERDICT_PAIRS:
            self.trainer.judge(self._released, Margins())
        # What a pusher would have taken by now; pushes are measured apart.
        self.learner.tastes.dirty.clear()
        self.learner.tastes.dirty_history.clear()


def measure_core(workload: Workload, events: int) -> tuple[dict[str, float], Core]:
    """Both arms on the same messages, chunk by chunk in turn, so that what slows the machine slows both."""
    vectors = Vectors(workload)
    core = Core(workload, vectors)
    seconds = {"decode": 0.0, "full": 0.0, "wall": 0.0}
    seen = 0
    for messages in made_elsewhere(workload, events, CHUNK):
        gc.collect()
        gc.freeze()  # the preloaded messages are no work of the learner's collector
        batches = [messages[start : start + BATCH] for start in range(0, len(messages), BATCH)]
        started = time.process_time()
        for batch in batches:
            decode(batch)
        seconds["decode"] += time.process_time() - started
        started, wall = time.process_time(), time.perf_counter()
        for batch in batches:
            core.take(decode(batch)[0])
        seconds["full"] += time.process_time() - started
        seconds["wall"] += time.perf_counter() - wall
        gc.unfreeze()
        seen += len(messages)
    figures = {
        "events": float(seen),
        "events_per_second_core": seen / seconds["full"],
        "wall_events_per_second": seen / seconds["wall"],
        "decode_per_second_core": seen / seconds["decode"],
        "vs_decode": seconds["decode"] / seconds["full"],
        "couples": float(core.learner.window.counts.couples),
    }
    return figures, core


def learn_watched(_: str, events: int) -> None:
    """Resident memory while a learner reads so many events."""
    workload = Workload()
    core = Core(workload, Vectors(workload))
    memory: dict[int, float] = {}
    seen = 0
    for messages in made_elsewhere(workload, events, HELD):
        for start in range(0, len(messages), BATCH):
            core.take(decode(messages[start : start + BATCH])[0])
        seen += len(messages)
        memory[seen] = resident()
    print(json.dumps({"memory_growth": memory[seen] / memory[MILLION] - 1, "memory_mib": memory[seen] / 2**20}))


def made_elsewhere(workload: Workload, events: int, held: int) -> Iterator[list[Any]]:
    """`workload.messages`, drawn and encoded by a process of its own: up to 100 MB that come and go with its blocks
    would hide what the learner's memory does."""
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    maker = context.Process(target=_make, args=(workload, events, held, writer), daemon=True)
    maker.start()
    writer.close()
    offset = 0
    try:
        while offset < events:
            messages = workload.wrapped(reader.recv(), offset)
            offset += len(messages)
            yield messages
    finally:
        reader.close()
        maker.terminate()
        maker.join(10)


def _make(workload: Workload, events: int, held: int, writer: Any) -> None:
    for values in workload.events(events, held):
        writer.send(values)


def resident() -> float:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))


# -- the same core behind two ways to read Kafka, each in a process of its own -----------------------------------------


def read_with_confluent(broker: str, events: int) -> None:
    """Our loop: `poll_raw`, then decoder and core."""
    from workers.messaging import Follower

    core = warmed()
    follower = Follower(Kafka(bootstrap_servers=broker, embedded=True), TOPIC)
    client = follower._client
    clock = Clock(events)
    while not clock.done:
        records = [record for record in client.consume(BATCH, 0.2) if record.error() is None]
        if records:
            clock.begin()
            core.take(numbered(records, clock.seen))
            clock.count(len(records))
    print(json.dumps(clock.result()))
    follower.close()


def warmed() -> Core:
    """A core that knows what came before the broker's events."""
    workload = Workload()
    core = Core(workload, Vectors(workload))
    messages = next(workload.messages(WARM_EVENTS, WARM_EVENTS))
    for start in range(0, len(messages), BATCH):
        core.take(decode(messages[start : start + BATCH])[0])
    return core


def numbered(records: Sequence[Any], first: int) -> Columns:
    """Decoded, in order of arrival from four partitions as if from one: the core is one partition's."""
    n = len(records)
    offset = np.arange(WARM_EVENTS + first, WARM_EVENTS + first + n)
    return decode_values([record.value() for record in records], offset, np.full(n, -1, np.int64))[0]


def read_with_faust(broker: str, events: int) -> None:
    """The same in a Faust agent that takes 500 at a time and acks nothing itself."""
    import faust

    core = warmed()
    clock = Clock(events)
    with tempfile.TemporaryDirectory() as folder:
        app = faust.App(
            "bench-learn",
            broker=f"kafka://{broker}",
            datadir=folder,
            topic_allow_declare=False,
            topic_disable_leader=True,
            consumer_auto_offset_reset="earliest",
            broker_session_timeout=6,
            broker_heartbeat_interval=2,
            web_enabled=False,
        )
        topic = app.topic(TOPIC, value_type=bytes, value_serializer="raw", key_serializer="raw")

        @app.agent(topic)
        async def learn(stream: Any) -> None:
            async for taken in stream.noack_take(TAKE, within=1.0):
                clock.begin()
                values, n = [event.value for event in taken], len(taken)
                offset = np.arange(WARM_EVENTS + clock.seen, WARM_EVENTS + clock.seen + n)
                batch, _ = decode_values(values, offset, np.full(n, -1, np.int64))
                core.take(batch)
                clock.count(n)
                if clock.done:
                    print(json.dumps(clock.result()), flush=True)
                    os._exit(0)

        faust.Worker(app, loglevel="error", redirect_stdouts=False).execute_from_commandline()


class Clock:
    """CPU and wall time from the first batch to the last event."""

    def __init__(self, events: int) -> None:
        self.events, self.seen, self._started = events, 0, (0.0, 0.0)

    @property
    def done(self) -> bool:
        return self.seen >= self.events

    def begin(self) -> None:
        if not self.seen:
            self._started = time.process_time(), time.perf_counter()

    def count(self, n: int) -> None:
        self.seen += n

    def result(self) -> dict[str, float]:
        cpu, wall = time.process_time() - self._started[0], time.perf_counter() - self._started[1]
        return {"per_second_core": self.seen / cpu, "per_second_wall": self.seen / wall, "events": self.seen}


def apart(arm: str, events: int, broker: str = "") -> dict[str, float]:
    """What an arm measures in a process of its own."""
    command = [sys.executable, __file__, "--arm", arm, "--broker", broker, "--events", str(events)]
    limit = max(300, events / 10_000)
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode:
        raise RuntimeError(f"the {arm} arm failed: {done.stderr[-500:]}")
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def measure_faust(workload: Workload, events: int) -> dict[str, float]:
    """Both readers by turns over one preloaded embedded broker."""
    from workers.embedded import Embedded
    from workers.messaging import Producer

    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder), parts=("kafka",)) as servers:
        producer = Producer(servers.kafka, "bench")
        values = next(workload.events(WARM_EVENTS + events, WARM_EVENTS + events))[WARM_EVENTS:]
        for number, value in enumerate(values):
            producer.send(TOPIC, value, None, None, number * 4 // len(values))
        assert producer.flush(60) == 0
        producer.close()
        turns = [
            [
                apart(arm, len(values), servers.kafka.bootstrap_servers)["per_second_core"]
                for arm in ("confluent", "faust")
            ]
            for _ in range(TURNS)
        ]
    ratios = [ours / theirs for ours, theirs in turns]
    ours, theirs = np.median(turns, axis=0).tolist()
    return {
        "confluent_per_second_core": ours,
        "faust_per_second_core": theirs,
        "vs_faust": float(np.median(ratios)),
        "vs_faust_least": min(ratios),
        "vs_faust_most": max(ratios),
    }


def measure_tokens(workload: Workload, events: int = 5_000) -> tuple[float, float]:
    """Microseconds of CPU time that a decision token adds to an impression, the first time and when the same decision
    was seen before: the workload's events carry none."""
    batch, _ = decode(next(workload.messages(events, events)))
    number = np.flatnonzero([cover is not None for cover in batch.cover])
    tokens: list[str | None] = [None] * len(batch)
    for row in number.tolist():
        item = int(batch.item[row][5:])
        covers = tuple(workload.cover(item, each) for each in range(workload.covers))
        choice = Choice(batch.cover[row], "s", "segment", None, covers, (1 / len(covers),) * len(covers))
        tokens[row] = sign(
            choice, b"bench", item_id=batch.item[row], generation=1, day=date(2026, 1, 1), policy="segment"
        )
    batch = replace(batch, decision=tokens)
    reader = Tokens((b"bench",))
    found = []
    for _ in range(2):
        started = time.process_time()
        weights = reader.weights(batch)
        found.append((time.process_time() - started) / int((batch.kind == IMPRESSION).sum()) * 1e6)
        assert not weights.bad.any()
    return found[0], found[1]


# -- Feast, apart ----------------------------------------------------------------------------------------------------


def measure_push(core: Core, workload: Workload, seconds: float = 10.0) -> dict[str, float]:
    """Rows a second as fast as they go, then the lag while tastes change at the pace of the stream."""
    from workers.embedded import apply_feast
    from workers.features import Features

    class Noted(Features):
        done: list[tuple[float, list[str]]]

        def push(self, view: str, rows: Sequence[Any]) -> None:
            super().push(view, rows)
            self.done.append((time.monotonic(), [row["user_id"] for row in rows]))

    tastes = core.learner.tastes
    people = np.flatnonzero(tastes.pairs[: len(tastes.names)])

    def row(number: int) -> dict[str, Any]:
        return {"residual": tastes.residual[number], "space": "0" * 64, "pairs": int(tastes.pairs[number])}

    with tempfile.TemporaryDirectory() as folder:
        features = Noted(apply_feast(Path(folder) / "feast"))
        features.done = []
        rows = [{"user_id": tastes.names.listed[number], **row(number)} for number in people[:10_000].tolist()]
        features.push("user_taste", rows[:1])  # opens the store
        started = time.perf_counter()
        for start in range(0, len(rows), 2000):
            features.push("user_taste", rows[start : start + 2000])
        rate = len(rows) / (time.perf_counter() - started)
        features.done.clear()
        pusher = Pusher(features, 1.0)
        pusher.start()
        random = np.random.default_rng(0)
        # What 500 impressions a second move: 3 % clicks, two couples each at most, two people a couple.
        changes = int(workload.rate * workload.clicks * 4)
        since: dict[str, list[float]] = {}
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            chosen = random.choice(people, changes // 10).tolist()
            for number in chosen:
                since.setdefault(tastes.names.listed[number], []).append(time.monotonic())
            pusher.offer("user_taste", {tastes.names.listed[number]: row(number) for number in chosen})
            time.sleep(0.1)
        pusher.close(30)
        lags = []
        for at, users in features.done:
            for user in users:
                lags += [at - offered for offered in since.get(user, ()) if offered <= at]
                since[user] = [offered for offered in since.get(user, ()) if offered > at]
        features.close()
    return {"push_rows_per_second": rate, "push_lag_p99": float(np.percentile(lags, 99)), "push_changes": changes}


ARMS = {"confluent": read_with_confluent, "faust": read_with_faust, "memory": learn_watched}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2 * MILLION)
    parser.add_argument("--json", type=Path, help="Write the figures there as well.")
    parser.add_argument("--without-faust", action="store_true", help="Leave vs_faust out.")
    parser.add_argument("--without-feast", action="store_true", help="Leave the pushes out.")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--broker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.events < 1:
        parser.error("--events: at least 1")
    if asked.arm:
        ARMS[asked.arm](asked.broker, asked.events)
        return

    workload = Workload()
    got, core = measure_core(workload, asked.events)
    if asked.events >= 10 * MILLION:
        got |= apart("memory", asked.events)
    if not asked.without_faust:
        got |= measure_faust(workload, BROKER_EVENTS)
    if not asked.without_feast:
        got |= measure_push(core, workload)
    shown = f"{got['events']:,.0f} preloaded messages, no Kafka; {got['couples']:,.0f} couples; per second of CPU time"
    wall = f"by the clock, on a machine shared with others: {got['wall_events_per_second']:,.0f}"
    fresh, again = measure_tokens(workload)
    figures = [
        Figure("events_per_second_core", got["events_per_second_core"], least=100_000, note=f"{shown}; {wall}"),
        Figure("decode_per_second_core", got["decode_per_second_core"], note="the decoder alone, on the same messages"),
        Figure("token_microseconds", fresh, note="CPU time that a decision token adds to an event, at first sight"),
        Figure("token_again_microseconds", again, note="the same for a decision that was seen before"),
        Figure("vs_decode", got["vs_decode"], least=0.4, note="decoder's CPU time over the whole learner's"),
    ]
    if "vs_faust" in got:
        ours, theirs = got["confluent_per_second_core"], got["faust_per_second_core"]
        note = f"{BROKER_EVENTS:,} messages on the embedded broker, its limit, after {WARM_EVENTS:,} from memory: "
        note += f"{ours:,.0f} against {theirs:,.0f} a second; medians of {TURNS} turns, whose ratios were "
        note += f"{got['vs_faust_least']:.1f} to {got['vs_faust_most']:.1f}"
        figures.append(Figure("vs_faust", got["vs_faust"], least=8, note=note))
    if "memory_growth" in got:
        size = f"{got['memory_mib']:,.0f} MiB, preloaded messages included"
        note = f"{got['events'] / 1e6:g} M events over 1 M; {size}"
        figures.append(Figure("memory_growth", got["memory_growth"], most=0.02, note=note))
    if "push_lag_p99" in got:
        figures.append(
            Figure("push_rows_per_second", got["push_rows_per_second"], note="Feast on SQLite, by the clock")
        )
        note = f"seconds from change to row, at {got['push_changes']:,.0f} changes a second"
        figures.append(Figure("push_lag_p99", got["push_lag_p99"], most=5, note=note))
    facts = {**versions("confluent-kafka", "faust-streaming", "numpy", "msgspec", "feast"), "blas_threads": 1}
    if not report("The learner, one core", figures, asked.json, facts):
        sys.exit(1)


if __name__ == "__main__":
    main()
