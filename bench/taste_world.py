"""A small simulated audience whose taste is known, for the learner's tests: P(click) = σ(a + uᵀ M c).

Covers of one style lie close together; a person's segment decides which style the policy shows, nine times in ten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np
import orjson
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message
from numpy.typing import NDArray

from icg.preference import Head
from workers.decisions import Choice, sign
from workers.events import Source
from workers.preferences.decode import Columns, decode
from workers.preferences.learner import Learner, OtherSpace
from workers.preferences.pairs import Floats
from workers.preferences.sample import Budget
from workers.preferences.tastes import Limits, Tastes
from workers.preferences.window import MOST_SHOWN, Window
from workers.records import CoverInputs, Rendition, Sidecar

SPACE = hashlib.sha256(b"space").hexdigest()
START = datetime(2026, 1, 1, tzinfo=UTC)
DIGEST = "0" * 64
KEY = b"icg-demo"
EXPLORATION = 0.1


def unit(vectors: NDArray[np.float64]) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@dataclass
class TasteWorld:
    """Also `learner.Sources`: what it knows of people and covers, it tells.

    Args:
        strength: of the planted taste in covers; 0 is the placebo.
        fondness: of the planted taste in items, which a cover's embedding shows as well as its style.
        readers: so many of the people read; None: all.
        seconds: of event time from one impression to the next.
        missing: covers (item, number) whose sidecar is not there yet.
    """

    seed: int = 1
    people_count: int = 300
    items: int = 24
    styles: int = 7
    dimension: int = 64
    strength: float = 10.0
    fondness: float = 0.0
    appeal: float = -2.6
    readers: int | None = None
    seconds: float = 0.1
    missing: frozenset[tuple[int, int]] = frozenset()
    other_space: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        d, draw = self.dimension, self.random.normal
        centres = unit(draw(size=(self.styles - 1, d)))
        self.segment = self.random.integers(self.styles - 1, size=self.people_count)
        self.vectors = unit(centres[self.segment] + 0.6 * unit(draw(size=(self.people_count, d))))
        styles = unit(draw(size=(self.styles, d)))
        self.covers_seen = unit(styles[None] + 0.8 * unit(draw(size=(self.items, self.styles, d))))
        if self.fondness:
            # What an item is about is in all its covers. Items have something in common, so that there are segments
            # which click more than others, on their own cover, whatever it is.
            abouts = unit(unit(draw(size=d)) + unit(draw(size=(self.items, 1, d))))
            self.covers_seen = unit(self.covers_seen + abouts)
            self.fond = self.fondness * (self.vectors @ np.linalg.qr(draw(size=(d, d)))[0] @ abouts[:, 0].T)
        self.taste = np.linalg.qr(draw(size=(d, d)))[0] * self.strength
        self.asked: list[str] = []
        self._count = 0
        self._time = START

    @staticmethod
    def user(number: int) -> str:
        return f"reader-{number}"

    @staticmethod
    def item(number: int) -> str:
        return f"item-{number}"

    def cover(self, item: int, number: int) -> str:
        return hashlib.sha256(f"{self.seed}/{item}/{number}".encode()).hexdigest()

    # -- learner.Sources ---------------------------------------------------------------------------------------------

    def covers(self, wanted: Sequence[tuple[str, str]], space: str) -> list[Floats | OtherSpace | None]:
        found: list[Floats | OtherSpace | None] = []
        for item_id, cover_id in wanted:
            item = int(item_id.partition("-")[2])
            number = next((n for n in range(self.styles) if self.cover(item, n) == cover_id), None)
            if number is None or (item, number) in self.missing:
                found.append(None)
            else:
                other = (item, number) in self.other_space
                found.append(OtherSpace() if other else self.covers_seen[item, number])
        return found

    def people(self, user_ids: list[str], space: str, dimension: int) -> Floats:
        self.asked += user_ids
        return self.vectors[[int(user.partition("-")[2]) for user in user_ids]]

    # -- events ------------------------------------------------------------------------------------------------------

    def values(self, pages: int) -> list[bytes]:
        """Impressions, each followed by its click where there is one."""
        random = self.random
        people = random.integers(self.readers or self.people_count, size=pages)
        items = random.integers(self.items, size=pages)
        explores = random.random(pages) < EXPLORATION
        shown = np.where(explores, random.integers(self.styles, size=pages), self.segment[people])
        pull = np.einsum("nd,nd->n", self.vectors[people] @ self.taste, self.covers_seen[items, shown])
        if self.fondness:
            pull = pull + self.fond[people, items]
        clicked = random.random(pages) < 1 / (1 + np.exp(-(self.appeal + pull)))
        values = []
        for person, item, number, click in zip(
            people.tolist(), items.tolist(), shown.tolist(), clicked.tolist(), strict=True
        ):
            self._count += 1
            self._time += timedelta(seconds=self.seconds)
            name = f"{self._count:x}.0"
            token = self.token(item, number, int(self.segment[person]))
            values += [
                self.event(kind, person, item, number, event_id=f"{name}.{kind}", impression_id=name, decision=token)
                for kind in (("impression", "click") if click else ("impression",))
            ]
        return values

    def token(self, item: int, number: int, segment: int) -> str:
        """The decision that showed this cover to somebody of this segment."""
        known = self._tokens.get((item, number, segment))
        if known is None:
            candidates = tuple(self.cover(item, each) for each in range(self.styles))
            odds = [EXPLORATION / self.styles + (1 - EXPLORATION) * (each == segment) for each in range(self.styles)]
            choice = Choice(candidates[number], f"s-{segment}", "segment", None, candidates, tuple(odds))
            made = sign(choice, KEY, item_id=self.item(item), generation=1, day=START.date(), policy="segment")
            assert made is not None
            known = self._tokens[item, number, segment] = made
        return known

    @cached_property
    def _tokens(self) -> dict[tuple[int, int, int], str]:
        return {}

    def event(self, kind: str, person: int, item: int, number: int, event_id: str, **more: object) -> bytes:
        return orjson.dumps(
            {
                "time": self._time.isoformat(),
                "event_id": event_id,
                "user_id": self.user(person),
                "item_id": self.item(item),
                "cover_id": self.cover(item, number),
                "kind": kind,
                **more,
            }
        )

    # -- what it takes to learn --------------------------------------------------------------------------------------

    def head(self) -> Head:
        return Head.start(SPACE, self.dimension)

    def learner(self, partition: int = 0, holdout: float = 0.05, bound: float = 0.5, hourly: int = 10**6) -> Learner:
        """Everything goes to the trainer, and nobody looks or answers too often, unless told so."""
        tastes = Tastes(self.dimension, Limits(holdout, bound, hourly))
        window = Window(600_000_000, most_shown=MOST_SHOWN if hourly < 10**6 else 10**6)
        return Learner(partition, self.head(), 1, window, tastes, Budget(1e6))

    def sidecar(self, item: int, number: int) -> Sidecar:
        inputs = CoverInputs(
            item_id=self.item(item),
            item_version=1,
            title_sha256=None,
            reference_sha256=None,
            vector_sha256="neutral",
            base=DIGEST,
            mllm=DIGEST,
            adapter=DIGEST,
            sampler={},
            seed=0,
            rendition=Rendition(),
        )
        return Sidecar(
            cover_id=self.cover(item, number),
            item_id=self.item(item),
            item_version=1,
            segment_id=f"segment-{number}",
            sha256=DIGEST,
            bytes=1,
            inputs=inputs,
            rewards={},
            embedding=self.covers_seen[item, number].tolist(),
            space=SPACE,
            release=1,
            source=Source(topic="item-publish", partition=0, offset=0),
        )


def messages(values: Sequence[bytes | None], first: int = 0, partition: int = 0) -> list[Message]:
    """As confluent-kafka would hand them over, at consecutive offsets; no timestamp, so any event time is taken."""
    return [
        Message(
            topic="user-behavior",
            partition=partition,
            offset=first + number,
            value=value,
            timestamp=(TIMESTAMP_CREATE_TIME, -1),
        )
        for number, value in enumerate(values)
    ]


def columns(values: Sequence[bytes | None], first: int = 0) -> Columns:
    """Decoded; all of them good."""
    batch, bad = decode(messages(values, first))
    if bad:
        raise ValueError(bad[0].reason)
    return batch
