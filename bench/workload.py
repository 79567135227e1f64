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
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message
from numpy.typing import NDArray

START = 1_767_225_600_000_000  # 2026-01-01, µs
LATE = 800_000_000  # µs: beyond the join's 600 s
DELAY = 5.0  # s, mean, from an impression to its click or its duplicate
BLOCK = 200_000  # impressions drawn at once
GOLDEN = 0x9E3779B97F4A7C15  # spreads consecutive numbers over 64 bits

Rows = dict[str, NDArray[Any]]


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
        """n events in their order of arrival, as JSON, in lists of `chunk`. Takes the memory of one block only."""
        names = [[self.cover(i, c).encode() for c in range(self.covers)] for i in range(self.items)]
        popularity = np.arange(1, self.items + 1) ** -self.zipf
        popularity /= popularity.sum()
        held: list[bytes] = []
        later: Rows | None = None
        for block in count():
            rows = self._block(block, popularity)
            if later is not None:
                rows = {name: np.concatenate([later[name], column]) for name, column in rows.items()}
            order = np.argsort(rows["arrival"], kind="stable")
            due = rows["arrival"][order] < (block + 1) * BLOCK
            later = {name: column[order[~due]] for name, column in rows.items()}
            held += self._encoded({name: column[order[due]] for name, column in rows.items()}, names)
            while len(held) >= min(chunk, n):
                yield held[: min(chunk, n)]
                n -= min(chunk, n)
                held = held[chunk:]
                if not n:
                    return

    def _block(self, block: int, popularity: NDArray[np.float64]) -> Rows:
        """Impressions of one block, with their clicks and duplicates, which arrive later."""
        rng = np.random.default_rng([self.seed, block])
        number = np.arange(block * BLOCK, (block + 1) * BLOCK)
        time = START + (number / self.rate * 1e6).astype(np.int64)
        time[rng.random(BLOCK) < self.late] -= LATE
        shown = {
            "number": number,
            "time": time,
            "user": rng.integers(self.users, size=BLOCK),
            "item": rng.choice(self.items, BLOCK, p=popularity),
            "cover": rng.integers(self.covers, size=BLOCK),
            "place": rng.integers(20, size=BLOCK),
            "arrival": number.astype(np.float64),
            "click": np.zeros(BLOCK, np.int64),
        }
        clicked = rng.random(BLOCK) < self.clicks
        doubled = rng.random(BLOCK) < self.duplicates
        parts = [shown]
        for again, click in ((clicked, 1), (doubled, 0)):
            part = {name: column[again] for name, column in shown.items()}
            part["arrival"] = part["arrival"] + rng.exponential(DELAY * self.rate, size=int(again.sum()))
            part["time"] = part["time"] + 3_000_000 * click
            part["click"] = part["click"] + click
            parts.append(part)
        return {name: np.concatenate([part[name] for part in parts]) for name in shown}

    def _encoded(self, rows: Rows, names: list[list[bytes]]) -> list[bytes]:
        seconds = np.datetime_as_string(rows["time"].astype("datetime64[us]")).tolist()
        columns = [rows[name].tolist() for name in ("click", "number", "user", "item", "cover", "place")]
        return [
            b'{"time":"%bZ","event_id":"%b%016x%08x","user_id":"reader-%06d","item_id":"item-%05d","cover_id":"%b",'
            b'"segment_id":"segment-%02d","kind":"%b",%b"page_id":"page-%010d","surface":"home","position":%d}'
            % (
                at.encode(),
                b"c" if click else b"i",
                number * GOLDEN % 2**64,
                number,
                user,
                item,
                names[item][cover],
                cover,
                b"click" if click else b"impression",
                b'"impression_id":"i%016x%08x",' % (number * GOLDEN % 2**64, number) if click else b"",
                number // 20,
                place,
            )
            for at, click, number, user, item, cover, place in zip(seconds, *columns, strict=True)
        ]

    def messages(self, n: int, chunk: int = 100_000) -> Iterator[list[Message]]:
        """The same as messages of partition 0, as confluent-kafka hands them over."""
        offset = 0
        for values in self.events(n, chunk):
            yield self.wrapped(values, offset)
            offset += len(values)

    def wrapped(self, values: list[bytes], offset: int) -> list[Message]:
        """Values as messages at consecutive offsets from `offset` on."""
        stamp = (START + int(offset / self.rate * 1e6)) // 1000
        return [
            Message(
                topic="user-behavior",
                partition=0,
                offset=offset + number,
                value=value,
                timestamp=(TIMESTAMP_CREATE_TIME, stamp),
            )
            for number, value in enumerate(values)
        ]


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
