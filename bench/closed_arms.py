"""The loop of `bench/closed_loop.py`: a platform that shows pages, a stack that chooses covers and learns from clicks.

What is real, in this process: the events' bytes and their decoding, signed decision tokens and their weights, the
learner of a partition, the pairs' message, the trainer and its verdict (`workers.preferences`), the policies and the
choice (`workers.policies`, `workers.decisions`). What is left out: Kafka, S3, Feast and HTTP between them; a learned
taste is served from the next batch on, as it is after a push. The people are simulated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import orjson
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message
from numpy.typing import NDArray

from bench.closed_pool import Covers, Floats
from icg.evaluation.audience import Readers
from icg.preference import Head
from workers.decisions import Choice, Offer, Reader, choose, sign
from workers.events import NEUTRAL
from workers.policies import Person, Rule, Taste, pack
from workers.preferences import pairs as messages
from workers.preferences.decode import decode
from workers.preferences.judging import Margins
from workers.preferences.learner import Learner, OtherSpace
from workers.preferences.propensity import Tokens
from workers.preferences.sample import Budget
from workers.preferences.tastes import Limits, Tastes
from workers.preferences.trainer import Trainer
from workers.preferences.window import Window
from workers.settings import Policy, Preferences

ARMS = ("neutral", "random", "best_of_8", "personal", "frozen", "oracle")
"""The learner reads pages of each but the oracle: its choices are nobody's decision, and would tell it the truth."""
KEY = b"icg-demo"
START = datetime(2026, 1, 1, 18, tzinfo=UTC)
DAYS = 12
"""Evenings over which the pages are spread: covers are sticky for a day."""


@dataclass(frozen=True)
class Setup:
    """How the loop is run."""

    pages: int = 30_000
    page_size: int = 12
    seconds: float = 1.5  # of event time from page to page
    batch: int = 50  # pages that the learner reads at once
    policy: Policy = "softmax"
    exploration: float = 0.1
    learns_from: int = 0  # page from which on learned tastes and releases are served; before, revision 0 serves alone
    arms: tuple[str, ...] = ARMS
    preferences: Preferences = field(default_factory=lambda: Preferences(release_pairs=1000))
    seed: int = 0


class Stack:
    """What serves and learns. Also `learner.Sources`: it knows every cover's embedding and every person's vector."""

    def __init__(self, covers: Sequence[Covers], vectors: Floats, head: Head, settings: Preferences) -> None:
        self.covers_of, self.vectors, self.first, self.released = covers, vectors, head, head
        self.ids = [
            [_cover_id(item, number) for number in range(len(each.pictures))] for item, each in enumerate(covers)
        ]
        self.places = {name: (item, k) for item, names in enumerate(self.ids) for k, name in enumerate(names)}
        self.settings = settings
        limits = Limits(settings.holdout, settings.residual_norm, settings.pairs_per_hour)
        window = Window(
            int(settings.join_seconds * 1e6), most=settings.window_events, most_shown=settings.impressions_per_window
        )
        tastes = Tastes(head.dimension, limits)
        self.learner = Learner(0, head, 1, window, tastes, Budget(settings.pairs_per_second))
        self.trainer = Trainer.of(head)
        self.tokens = Tokens([KEY])
        self.offset = self.releases = self.refusals = 0

    # -- learner.Sources ----------------------------------------------------------------------------------------------

    def covers(self, wanted: Sequence[tuple[str, str]], space: str) -> list[Floats | OtherSpace | None]:
        found: list[Floats | OtherSpace | None] = []
        for _, name in wanted:
            item, number = self.places[name]
            found.append(self.covers_of[item].embeddings[number])
        return found

    def people(self, user_ids: list[str], space: str, dimension: int) -> Floats:
        return np.stack([self.vectors[_number(user)] for user in user_ids])

    # -- learning -----------------------------------------------------------------------------------------------------

    def learn(self, values: Iterable[bytes], release: bool = True) -> None:
        """Events of one partition, as they would come from Kafka."""
        raw = []
        for value in values:
            raw.append(_message(value, self.offset))
            self.offset += 1
        batch, bad = decode(raw)
        if bad:
            raise ValueError(f"the simulated platform sent a bad event: {bad[0].reason}")
        for made in self.learner.take(batch, self.tokens.weights(batch), self):
            self.trainer.take(messages.decode(messages.encode(made, START.isoformat())), self.released)
        if release and self.trainer.since >= self.settings.release_pairs:
            self._judge()

    def _judge(self) -> None:
        settings = self.settings
        margins = Margins(settings.release_margin, settings.order_margin, settings.calibration_margin)
        if not self.trainer.judge(self.released, margins).accepted:
            self.refusals += 1
            return
        self.released = self.trainer.average.copy()
        self.releases += 1
        self.learner.adopt(self.released, self.releases + 1)

    # -- serving ------------------------------------------------------------------------------------------------------

    def person(self, number: int, learned: bool) -> Person:
        """What the stores know of a person; without learning, the import alone."""
        vector, count = self.vectors[number], 0
        known = self.learner.tastes.names.get(_user(number)) if learned else None
        if known is not None:
            vector = vector + self.learner.tastes.residual[known]
            count = int(self.learner.tastes.pairs[known])
        return Person(self.first.space, vector, count)


@dataclass(frozen=True)
class Log:
    """Clicks and impressions, [arms, bins, people, items]; bins are equal stretches of the run."""

    clicks: NDArray[np.int32]
    shows: NDArray[np.int32]
    releases: list[int]  # in force at the end of each bin
    refusals: int = 0
    order: dict[str, float] = field(default_factory=dict)  # see `Loop.order`


class Loop:
    """One audience, one catalogue, one stack."""

    def __init__(self, stack: Stack, readers: Readers, belongs: NDArray[np.int64], setup: Setup) -> None:
        """
        Args:
            belongs: [people], each one's segment.
        """
        self.stack, self.readers, self.belongs, self.setup = stack, readers, belongs, setup
        covers, space = stack.covers_of, stack.first.space
        self.own = [_offer(stack.ids[k], each, (each.neutral, *each.segments), space) for k, each in enumerate(covers)]
        self.shared = [_offer(stack.ids[k], each, each.shared, space) for k, each in enumerate(covers)]
        self.rule = Rule(bound=stack.settings.residual_norm)

    def run(self, bins: int = 12) -> Log:
        """Show all pages."""
        setup, stack = self.setup, self.stack
        shape = len(setup.arms), bins, len(self.readers), len(stack.covers_of)
        log = Log(np.zeros(shape, np.int32), np.zeros(shape, np.int32), [0] * bins)
        events: list[bytes] = []
        for page in range(setup.pages):
            events += self._page(page, log, page * bins // setup.pages)
            if (page + 1) % setup.batch == 0:
                stack.learn(events, release=page >= setup.learns_from)
                events = []
                log.releases[page * bins // setup.pages] = stack.releases
        last = setup.pages - 1
        order = {"first": self.order(0, False), "last_frozen": self.order(last, False), "last": self.order(last, True)}
        return replace(log, refusals=stack.refusals, order=order)

    def order(self, page: int, learned: bool, count: int = 4000) -> float:
        """Share of random pairs of one item's covers that the stack puts in a random reader's true order."""
        stack, now = self.stack, self.readers.tastes(page)
        rng = np.random.default_rng([self.setup.seed, 3])
        head = stack.released if learned else stack.first
        vectors = np.stack([stack.person(number, learned).vector for number in range(len(self.readers))])
        right = 0
        for person, item in zip(
            rng.integers(len(vectors), size=count).tolist(),
            rng.integers(len(stack.covers_of), size=count).tolist(),
            strict=True,
        ):
            each = stack.covers_of[item]
            one, other = rng.choice(len(each.pictures), 2, replace=False)
            true = (each.pictures[one] - each.pictures[other]) @ (
                now.general[person] + now.by_topic[person, each.topic]
            )
            said = (vectors[person] @ head.weight + head.bias) @ (each.embeddings[one] - each.embeddings[other])
            right += int((true > 0) == (said > 0))
        return right / count

    def _page(self, page: int, log: Log, bin_: int) -> list[bytes]:
        """Show one page in every arm; the events of one of them, if the learner is told of that one.

        Who, what and all noise are the same for every arm, and a reader remembers nothing: so what they would have
        clicked in each arm is known, which only a simulation can have. The learner hears of one arm a page.
        """
        setup, stack = self.setup, self.stack
        rng = np.random.default_rng([setup.seed, page])
        person = self.readers.reader(page, rng)
        items = rng.permutation(len(stack.covers_of))[: setup.page_size].tolist()
        looks, decides = rng.random((2, len(items)))
        # Each arm is told of once in as many pages, in an order drawn anew each time.
        turn, place = divmod(page, len(setup.arms))
        told = setup.arms[int(np.random.default_rng([setup.seed, turn, 1]).permutation(len(setup.arms))[place])]
        length = -(-setup.pages // DAYS)
        day = START.date() + timedelta(days=page // length)
        time = START + timedelta(days=page // length, seconds=page % length * setup.seconds)
        covers = [stack.covers_of[item] for item in items]
        topics, titles = [each.topic for each in covers], [each.title for each in covers]
        looked_at = self.readers.looked_at(len(items))
        events: list[bytes] = []
        for k, name in enumerate(setup.arms):
            shown, choices = self._choose(name, person, items, page, day)
            pictures = np.stack([each.pictures[number] for each, number in zip(covers, shown, strict=True)])
            odds = self.readers.odds(person, page, pictures, topics, titles)
            clicked = (looks < looked_at) & (decides < odds)
            log.shows[k, bin_, person, items] += 1
            log.clicks[k, bin_, person, items] += clicked
            if name == told and choices is not None:
                events = self._events(page, person, items, shown, choices, clicked, looked_at, time, day)
        return events

    def _choose(
        self, arm: str, person: int, items: Sequence[int], page: int, day: date
    ) -> tuple[list[int], list[Choice] | None]:
        """The covers' numbers; and the decisions, where the stack made some."""
        setup, stack = self.setup, self.stack
        if arm == "oracle":
            now = self.readers.tastes(page)
            shown = []
            for item in items:
                each = stack.covers_of[item]
                shown.append(int((each.pictures @ (now.general[person] + now.by_topic[person, each.topic])).argmax()))
            return shown, None
        learned = arm in {"personal", "best_of_8"} and page >= setup.learns_from
        taste: Taste | None = None
        if arm in {"personal", "best_of_8", "frozen"}:
            head = stack.released if learned else stack.first
            taste = self.rule.taste(setup.policy, stack.person(person, learned), head, _user(person), day)
        offers = self.shared if arm == "best_of_8" else self.own
        reader = Reader(_user(person), f"s-{self.belongs[person]}", None, setup.policy, taste)
        choices = [
            choose(
                offers[item],
                reader,
                f"item-{item}",
                day,
                exploration=1.0 if arm == "random" else setup.exploration,
                personalization=arm != "neutral",
            )
            for item in items
        ]
        return [stack.places[str(choice.cover_id)][1] for choice in choices], choices

    def _events(
        self,
        page: int,
        person: int,
        items: Sequence[int],
        shown: Sequence[int],
        choices: Sequence[Choice],
        clicked: NDArray[np.bool_],
        looked_at: NDArray[np.float64],
        time: datetime,
        day: date,
    ) -> list[bytes]:
        values = []
        for place, (item, number, choice) in enumerate(zip(items, shown, choices, strict=True)):
            name = f"{page:x}.{place}"
            token = sign(choice, KEY, item_id=f"item-{item}", generation=1, day=day, policy=self.setup.policy)
            for kind in ("impression", "click") if clicked[place] else ("impression",):
                event = {
                    "time": time.isoformat(),
                    "event_id": f"{name}.{kind}",
                    "user_id": _user(person),
                    "item_id": f"item-{item}",
                    "cover_id": self.stack.ids[item][number],
                    "kind": kind,
                    "impression_id": name,
                    "surface": "simulated",
                    "position": place,
                    "position_propensity": float(looked_at[place]),
                    "decision": token,
                }
                values.append(orjson.dumps(event))
        return values


def _offer(ids: Sequence[str], covers: Covers, numbers: Sequence[int], space: str) -> Offer:
    """An item's covers as Feast has them; the first is the neutral one."""
    segments = [NEUTRAL, *(f"s-{k}" for k in range(len(numbers) - 1))]
    embeddings = pack([covers.embeddings[k].tolist() for k in numbers], covers.embeddings.shape[1])
    return Offer(segments, [ids[k] for k in numbers], [""] * len(numbers), embeddings, space)


def _message(value: bytes, offset: int) -> Message:
    return Message(
        topic="user-behavior", partition=0, offset=offset, value=value, timestamp=(TIMESTAMP_CREATE_TIME, -1)
    )


def _cover_id(item: int, number: int) -> str:
    return hashlib.sha256(f"{item}/{number}".encode()).hexdigest()


def _user(number: int) -> str:
    return f"reader-{number}"


def _number(user: str) -> int:
    return int(user.partition("-")[2])
