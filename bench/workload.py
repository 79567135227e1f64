"""The fixed behaviour workload of the throughput figures: the same seed gives the same bytes.

200,000 users and 20,000 covers of 2,500 items (Zipf 1.1 over items), 3 % clicks, 1 % duplicates, 1 % late by more than
the join's ten minutes, about 330 B an event. `python bench/workload.py FILE --events N` writes it as JSON lines.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message
from numpy.typing import NDArray

START = 1_767_225_600_000_000  # 2026-01-01, µs
LATE = 800_000_000  # µs: beyond the join's 600 s
DELAY = 5.0  # s, mean, from an impression to its click or its duplicate


@dataclass(frozen=True)
class Workload:
    """What the events are drawn from."""

    users: int = 200_000
    items: int = 2_500
    covers: int = 8  # an item
    dimension: int = 64
    clicks: float = 0.03
    duplicates: float = 0.01
    late: float = 0.01
    zipf: float = 1.1
    rate: float = 500.0  # impressions a second of event time in this partition
    seed: int = 20

    def user(self, number: int) -> str:
        return f"reader-{number:06d}"

    def item(self, number: int) -> str:
        return f"item-{number:05d}"

    def cover(self, item: int, number: int) -> str:
        return hashlib.sha256(f"{self.seed}/{item}/{number}".encode()).hexdigest()

    def vectors(self, n: int, salt: int) -> NDArray[np.float32]:
        """Unit vectors [n, dimension]."""
        drawn = np.random.default_rng([self.seed, salt]).normal(size=(n, self.dimension))
        return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)

    def events(self, n: int, chunk: int = 100_000) -> Iterator[list[bytes]]:
        """n events in their order of arrival, as JSON."""
        rng = np.random.default_rng(self.seed)
        shown = int(n / (1 + self.clicks + self.duplicates)) + 1
        popularity = np.arange(1, self.items + 1) ** -self.zipf
        user = rng.integers(self.users, size=shown, dtype=np.int32)
        item = rng.choice(self.items, shown, p=popularity / popularity.sum()).astype(np.int32)
        cover = rng.integers(self.covers, size=shown, dtype=np.int8)
        place = rng.integers(20, size=shown, dtype=np.int8)
        time = START + (np.arange(shown) / self.rate * 1e6).astype(np.int64)
        clicked = np.flatnonzero(rng.random(shown) < self.clicks)
        doubled = np.flatnonzero(rng.random(shown) < self.duplicates)
        time[rng.random(shown) < self.late] -= LATE
        wait = [rng.exponential(DELAY * self.rate, size=len(rows)) for rows in (clicked, doubled)]
        of = np.concatenate([np.arange(shown), clicked, doubled])
        arrival = np.concatenate([np.arange(shown), clicked + wait[0], doubled + wait[1]])
        is_click = np.repeat([False, True, False], [shown, len(clicked), len(doubled)])
        order = np.argsort(arrival, kind="stable")[:n]
        names = [[self.cover(i, c) for c in range(self.covers)] for i in range(self.items)]
        for start in range(0, n, chunk):
            rows = order[start : start + chunk]
            source = of[rows]
            seconds = np.datetime_as_string((time[source] + 3_000_000 * is_click[rows]).astype("datetime64[us]"))
            yield [
                b'{"time":"%bZ","event_id":"%b%016x%08x","user_id":"reader-%06d","item_id":"item-%05d","cover_id":"%b",'
                b'"segment_id":"segment-%02d","kind":"%b",%b"page_id":"page-%010d","surface":"home","position":%d}'
                % (
                    at.encode(),
                    b"c" if click else b"i",
                    number * 0x9E3779B97F4A7C15 % 2**64,
                    number,
                    u,
                    i,
                    names[i][c].encode(),
                    c,
                    b"click" if click else b"impression",
                    b'"impression_id":"i%016x%08x",' % (number * 0x9E3779B97F4A7C15 % 2**64, number) if click else b"",
                    number // 20,
                    p,
                )
                for at, click, number, u, i, c, p in zip(
                    seconds.tolist(),
                    is_click[rows].tolist(),
                    source.tolist(),
                    user[source].tolist(),
                    item[source].tolist(),
                    cover[source].tolist(),
                    place[source].tolist(),
                    strict=True,
                )
            ]

    def messages(self, n: int, chunk: int = 100_000) -> Iterator[list[Message]]:
        """The same as messages of partition 0, as confluent-kafka hands them over."""
        offset = 0
        for values in self.events(n, chunk):
            stamp = (START + int(offset / self.rate * 1e6)) // 1000
            yield [
                Message(
                    topic="user-behavior",
                    partition=0,
                    offset=offset + number,
                    value=value,
                    timestamp=(TIMESTAMP_CREATE_TIME, stamp),
                )
                for number, value in enumerate(values)
            ]
            offset += len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--events", type=int, default=2_000_000)
    arguments = parser.parse_args()
    with arguments.file.open("wb") as file:
        for values in Workload().events(arguments.events):
            file.write(b"\n".join(values) + b"\n")


if __name__ == "__main__":
    main()
