"""A simulated audience: it fetches covers by HTTP, looks at the bytes, and reports to `user-behavior` like a platform.

It is named as simulated wherever it is reported. It sees what a person sees (the picture, the title, the position) and
speaks only HTTP and Kafka; segments, rewards and revisions never reach a choice.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from icg.evaluation.attributes import NAMES, attributes
from icg.evaluation.people import Floats, Population, Standardiser
from workers.events import BehaviorKind, UserBehavior
from workers.exceptions import UserError
from workers.messaging import Producer

POSITION_DISCOUNT = 0.85
"""A reader looks at position k + 1 so much less often than at position k."""

SCALE_PICTURES = 50
"""The scale of the attributes is fitted on the first covers that anybody saw, then fixed: a taste must not move with
the data. Until then covers leave everybody cold."""


@dataclass(frozen=True)
class Shown:
    """What a person sees of one entry of a page, and what the platform must echo about it."""

    item_id: str
    title: str
    picture: Floats
    echo: dict[str, Any]


@dataclass
class Totals:
    """What the audience did so far."""

    pages: int = 0
    impressions: int = 0
    clicks: int = 0
    failures: int = 0
    seconds: list[float] = field(default_factory=list)

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.seconds, q)) if self.seconds else float("nan")


class Audience:
    """Readers with hidden tastes.

    Args:
        users: ids, one for each person of the population.
        topics: category name of an item to its column in the population's tastes.
        click_rate: of a person for a cover of average utility at the first position.
    """

    def __init__(
        self,
        users: Sequence[str],
        people: Population,
        topics: Sequence[str],
        *,
        seed: int = 0,
        click_rate: float = 0.07,
        taste: float = 1.0,
    ) -> None:
        if len(users) != len(people.general):
            raise ValueError(f"{len(users)} users for {len(people.general)} simulated people")
        self.totals = Totals()
        self._users = list(users)
        self._people = people
        self._topics = {name: column for column, name in enumerate(topics)}
        self._seed = seed
        self._bias = float(np.log(click_rate / (1 - click_rate)))
        self._taste = taste
        self._pictures: dict[str, Floats] = {}
        self._standardise: Standardiser | None = None

    @classmethod
    def load(cls, users: Path, items: Sequence[dict[str, Any]], *, seed: int = 0) -> Audience:
        """People for a Parquet file of users (`user_id`, `embedding`), with tastes that their embeddings hint at.

        Args:
            items: the catalogue; its categories are the topics.
        """
        import pyarrow.parquet as parquet

        try:
            table = parquet.read_table(users, columns=["user_id", "embedding"])
        except ValueError as error:  # pyarrow's errors are ValueErrors
            raise UserError(f"{users} is no Parquet file of users: {error}") from None
        topics = sorted({item.get("category") or "" for item in items})
        embeddings = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
        people = Population.drawn(len(embeddings), len(topics), seed, embeddings=embeddings)
        return cls(table["user_id"].to_pylist(), people, topics, seed=seed)

    def clicks(self, person: int, page: Sequence[Shown], topics: Sequence[int], rng: np.random.Generator) -> list[bool]:
        """Which entries of a page this person clicks: position, appeal of the item, taste in the cover, noise."""
        looked = rng.random(len(page)) < POSITION_DISCOUNT ** np.arange(len(page))
        utility = np.array(
            [self._people.utility(person, topic, shown.picture) for shown, topic in zip(page, topics, strict=True)]
        )
        appeal = np.array([self._appeal(person, shown.title) for shown in page])
        probability = 1 / (1 + np.exp(-(self._bias + self._taste * utility + 0.5 * appeal)))
        return list(looked & (rng.random(len(page)) < probability))

    def _appeal(self, person: int, title: str) -> float:
        """How much this person cares for this item, whatever its cover: fixed, standard normal."""
        digest = hashlib.sha256(f"{self._seed}\n{person}\n{title}".encode()).digest()
        return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).normal())

    async def read(
        self,
        api: str,
        items: Sequence[dict[str, Any]],
        producer: Producer,
        *,
        pages: int,
        page_size: int = 12,
        readers: int = 4,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Totals], None] = lambda totals: None,
    ) -> Totals:
        """Read so many pages, `readers` at a time.

        Args:
            items: the catalogue's `item_id`, `title` and `category`, which a platform knows of its own items.
        """
        limits = httpx.Limits(max_connections=4 * readers)
        async with httpx.AsyncClient(base_url=api, timeout=20, follow_redirects=True, limits=limits) as http:

            async def reader(number: int) -> None:
                # A generator and a share of the pages for each, so that no answer's timing changes who reads what.
                rng = np.random.default_rng([self._seed, number])
                for _ in range(number, pages, readers):
                    if stop():
                        return
                    await self._read_page(http, items, producer, page_size, rng)
                    progress(self.totals)

            await asyncio.gather(*(reader(number) for number in range(readers)))
        return self.totals

    async def _read_page(
        self,
        http: httpx.AsyncClient,
        items: Sequence[dict[str, Any]],
        producer: Producer,
        page_size: int,
        rng: np.random.Generator,
    ) -> None:
        person = int(rng.integers(len(self._users)))
        chosen = [items[i] for i in rng.permutation(len(items))[:page_size]]
        request = {"user_id": self._users[person], "item_ids": [item["item_id"] for item in chosen]}
        began = time.perf_counter()
        try:
            answer = await http.post("/v1/covers:batchGet", json=request)
            answer.raise_for_status()
        except httpx.HTTPError:
            self.totals.failures += 1
            await asyncio.sleep(0.5)
            return
        self.totals.seconds.append(time.perf_counter() - began)
        titles = {item["item_id"]: item for item in chosen}
        page = [
            Shown(entry["item_id"], titles[entry["item_id"]].get("title") or "", await self._look(http, entry), entry)
            for entry in answer.json()["covers"]
            if entry.get("cover_id")
        ]
        if page:
            topics = [self._topics.get(titles[shown.item_id].get("category") or "", 0) for shown in page]
            page_id = uuid.UUID(int=int.from_bytes(rng.bytes(16), "big")).hex
            self._report(person, page, self.clicks(person, page, topics, rng), page_id, producer)

    async def _look(self, http: httpx.AsyncClient, entry: dict[str, Any]) -> Floats:
        """Download a cover as a browser would (and cache it as one would), and see it."""
        cover_id = entry["cover_id"]
        if cover_id not in self._pictures:
            answer = await http.get(entry["image"])
            answer.raise_for_status()
            with Image.open(io.BytesIO(answer.content)) as image:
                self._pictures[cover_id] = attributes(image)
        if self._standardise is None:
            if len(self._pictures) < SCALE_PICTURES:
                return np.zeros(len(NAMES))
            self._standardise = Standardiser.fit(np.stack(list(self._pictures.values())))
        return self._standardise(self._pictures[cover_id])

    def _report(
        self, person: int, page: Sequence[Shown], clicked: Sequence[bool], page_id: str, producer: Producer
    ) -> None:
        for position, (shown, click) in enumerate(zip(page, clicked, strict=True)):
            impression_id = f"{page_id}.{position}"
            common: dict[str, Any] = {
                "user_id": self._users[person],
                "item_id": shown.item_id,
                "cover_id": shown.echo["cover_id"],
                "segment_id": shown.echo.get("segment_id"),
                "impression_id": impression_id,
                "page_id": page_id,
                "surface": "simulated",
                "position": position,
                "decision": shown.echo.get("decision"),
                "time": datetime.now(UTC),
            }
            kinds = [BehaviorKind.IMPRESSION, BehaviorKind.CLICK] if click else [BehaviorKind.IMPRESSION]
            for kind in kinds:
                event = UserBehavior(event_id=f"{impression_id}.{kind}", kind=kind, **common)
                producer.send_event(event, event.event_id)
            self.totals.impressions += 1
            self.totals.clicks += int(click)
        self.totals.pages += 1
