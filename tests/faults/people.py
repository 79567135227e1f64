"""What people do meanwhile, and what a learner has to have made of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.stream_world import World
from bench.taste_world import KEY, TasteWorld
from icg.preference import Head
from tests.faults.checker import Learned
from workers.events import UserBehavior
from workers.preferences.checkpoint import Checkpoints, fingerprint, to_learner
from workers.preferences.decode import decode
from workers.preferences.learner import Learner
from workers.preferences.propensity import Tokens
from workers.preferences.tastes import Limits
from workers.records import sidecar_key

NONSENSE = b'{"event_id": 7}'
SETTINGS = {
    # Nobody's pairs are too many, as in `TasteWorld.learner`, and the head stays what it was.
    "ICG_PREFERENCES_IMPRESSIONS_PER_WINDOW": str(10**6),
    "ICG_PREFERENCES_PAIRS_PER_HOUR": str(10**6),
    "ICG_PREFERENCES_PAIRS_PER_SECOND": str(1e6),
    "ICG_PREFERENCES_RELEASE_PAIRS": str(10**9),
    "ICG_PREFERENCES_CHECKPOINT_EVENTS": "100",
}
_LIMITS: dict[str, Any] = {
    "horizon": 600_000_000,
    "most": 2_000_000,
    "shown": 10**6,
    "limits": Limits(0.05, 0.5, 10**6),
    "rate": 1e6,
}
_TASTES = ["user_taste:pairs"]


class People:
    """Readers of items of their own, whose covers are there from the beginning, so that what is learned follows from
    the stream alone."""

    def __init__(self, world: World, model: Path, seed: int) -> None:
        self._world, self._random = world, random.Random(seed)
        self._taste = TasteWorld(seed=seed, people_count=40, items=6)
        self._head = Head.load(model / "preference")
        space = self._head.space
        for item in range(self._taste.items):
            for number in range(self._taste.styles):
                sidecar = self._taste.sidecar(item, number).model_copy(update={"space": space})
                key = sidecar_key(sidecar.item_id, sidecar.cover_id)
                world.store.put_new(key, sidecar.encode(), "application/json")
        rows = [
            {"user_id": self._taste.user(person), "embedding": vector.tolist(), "space": space}
            for person, vector in enumerate(self._taste.vectors)
        ]
        world.features.push("user_embedding", rows)

    def some(self, pages: int) -> Iterator[tuple[str, bytes]]:
        """Key and value of impressions and clicks; one in ten comes twice, one in thirty is nonsense."""
        for value in self._taste.values(pages):
            user = UserBehavior.decode(value).user_id
            yield user, value
            if self._random.random() < 0.1:
                yield user, value
            if self._random.random() < 1 / 30:
                yield user, NONSENSE

    def learned(self, logged: Mapping[int, Sequence[Any]]) -> dict[int, Learned]:
        """What the learners' last states are, and what they should be.

        Args:
            logged: confluent-kafka's messages of each partition, all of them.
        """
        return {partition: self._learned(partition, messages) for partition, messages in logged.items()}

    def _learned(self, partition: int, messages: Sequence[Any]) -> Learned:
        end = messages[-1].offset() + 1 if messages else 0
        found = Checkpoints(self._world.store).newest(partition)
        if found is None:
            return Learned(end, -1, "", "")
        offset, tensors, meta = found
        learner = to_learner(tensors, meta, self._head, **_LIMITS)
        straight = self._straight(partition, messages, learner.release)
        tastes = learner.tastes
        names = list(tastes.names.listed)
        rows = self._world.features.read(_TASTES, [{"user_id": name} for name in names])
        pairs = tastes.pairs[: len(names)].tolist()
        differ = {
            name: (row["pairs"] or 0, state)
            for name, row, state in zip(names, rows, pairs, strict=True)
            if (row["pairs"] or 0) != state
        }
        return Learned(end, offset, fingerprint(learner), fingerprint(straight), differ)

    def _straight(self, partition: int, messages: Sequence[Any], release: int) -> Learner:
        """Who has read all of it at once, without a broker, a store or a break."""
        learner = self._taste.learner(partition)
        learner.head, learner.release = self._head, release
        if messages:
            batch, bad = decode(list(messages))
            learner.window.counts.bad += len(bad)
            learner.take(batch, Tokens([KEY]).weights(batch), self._taste)
            learner.skip(messages[-1].offset() + 1)
        return learner
