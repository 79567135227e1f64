"""What a platform publishes: new items, new versions, retracts, refreshes, repeats and nonsense. All from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from workers.events import Event, ItemPublish, ItemRefresh

NONSENSE = b'{"item_id": "../etc/passwd"}'


@dataclass
class Wanted:
    """How an item has to end, whatever order its events are handled in."""

    version: int = 0
    retracted: bool = False
    release: int = 1
    """At least this one."""


@dataclass
class Traffic:
    """Makes events, and knows what has to become of them."""

    seed: int
    bucket: str
    release: int = 1
    """The newest; refreshes may want it."""
    items: dict[str, Wanted] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    """Items known to have a manifest: a refresh of another may come before its publish, and change nothing."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def publish(self) -> ItemPublish:
        """An item that was not there before, one in four with a reference image."""
        number = len(self.items)
        return self._published(f"work-{number}", 1, number % 4 == 0)

    def again(self, item_id: str) -> ItemPublish:
        """The next version of an item."""
        return self._published(item_id, self.items[item_id].version + 1, False)

    def chunk(self, publishes: int) -> Iterator[Event | bytes]:
        """So many new items, and for about one in three something else besides, mostly about earlier items."""
        for _ in range(publishes):
            yield self.publish()
            if self._random.random() < 0.35:
                yield self._other(self._random.choice(list(self.items)))

    def _other(self, item_id: str) -> Event | bytes:
        wanted = self.items[item_id]
        kind = self._random.choices(("again", "refresh", "retract", "repeat", "nonsense"), (3, 4, 2, 1, 1))[0]
        if kind == "nonsense":
            return NONSENSE
        if kind == "again":
            return self.again(item_id)
        if kind == "refresh":
            if item_id in self.settled and not wanted.retracted:
                wanted.release = max(wanted.release, self.release)
            return ItemRefresh(item_id=item_id, release=self.release, priority=self._random.randrange(10))
        if kind == "retract":
            wanted.version += self._random.randrange(2)
            wanted.retracted = True
            return ItemPublish(item_id=item_id, item_version=wanted.version, action="retract")
        return ItemPublish(item_id=item_id, item_version=max(1, wanted.version - 1), title="An older version")

    def _published(self, item_id: str, version: int, reference: bool) -> ItemPublish:
        wanted = self.items.setdefault(item_id, Wanted())
        wanted.version, wanted.retracted = version, False
        return ItemPublish(
            item_id=item_id,
            item_version=version,
            title=f"The {item_id} of version {version}",
            reference_image=f"s3://{self.bucket}/art/{len(self.items) % 7}.png" if reference else None,
        )
