"""A simulated audience: it fetches covers by HTTP, looks at the bytes, and reports to `user-behavior` like a platform.

It is named as simulated wherever it is reported. It speaks only HTTP and Kafka. What a reader is given is `Seen`: the
picture, the title and the topic, in the order of the page. The rest of the api's answer is what a platform echoes, and
never reaches a choice. How people choose is in `icg.evaluation.audience`.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from icg.evaluation.attributes import NAMES, attributes
from icg.evaluation.audience import Habits, Readers
from icg.evaluation.people import Floats, Population, Standardiser
from workers.events import BehaviorKind, UserBehavior
from workers.exceptions import Fault, UserError
from workers.messaging import Producer

SCALE_PICTURES = 50
"""The scale of the attributes is fitted on the first covers that anybody saw, then fixed: a taste must not move with
the data. Until then covers leave everybody cold."""
SURFACE = "simulated"
ECHOED = ("item_id", "cover_id", "segment_id", "decision")
"""Of an answer, what a platform puts into its events."""


@dataclass(frozen=True)
class Seen:
    """All that a reader gets to know of one entry of a page; its position is its place in the page."""

    title: str
    topic: int
    picture: Floats  # [24], standardised attributes of the downloaded bytes


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

    def figures(self) -> dict[str, float]:
        """Named as simulated, for a report."""
        return {
            "simulated_pages": self.pages,
            "simulated_impressions": self.impressions,
            "simulated_clicks": self.clicks,
            "simulated_click_rate": self.clicks / max(1, self.impressions),
            "failed_pages": self.failures,
            "fetch_p50_ms": self.percentile(50) * 1000,
            "fetch_p95_ms": self.percentile(95) * 1000,
        }


class Audience:
    """Simulated readers at a real platform's two doors.

    Args:
        users: ids, one for each of the readers.
        topics: category name of an item to its column in the readers' tastes.
    """

    def __init__(self, users: Sequence[str], readers: Readers, topics: Sequence[str], *, seed: int = 0) -> None:
        if len(users) != len(readers):
            raise ValueError(f"{len(users)} users for {len(readers)} simulated people")
        self.totals = Totals()
        self._users = list(users)
        self._readers = readers
        self._topics = {name: column for column, name in enumerate(topics)}
        self._seed = seed
        self._pictures: dict[str, Floats] = {}
        self._standardise: Standardiser | None = None

    @classmethod
    def load(
        cls, users: Path, items: Sequence[dict[str, Any]], *, seed: int = 0, habits: Habits | None = None
    ) -> Audience:
        """People for a Parquet file of users (`user_id`, `embedding`), with tastes that their embeddings hint at.

        Args:
            items: the catalogue; its categories are the topics.

        Raises:
            UserError: the file cannot be read.
        """
        import pyarrow.parquet as parquet

        try:
            table = parquet.ParquetFile(users).read(columns=["user_id", "embedding"])
            vectors = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float64)
        except FileNotFoundError:
            raise UserError(f"{users}: no such file") from None
        except (ValueError, OSError, KeyError) as error:  # pyarrow's own errors are ValueErrors
            raise UserError(f"{users} is no Parquet file of users: {str(error).splitlines()[0]}") from None
        topics = sorted({str(item.get("category") or "") for item in items})
        people = Population.drawn(len(vectors), len(topics), seed, embeddings=vectors)
        return cls(table["user_id"].to_pylist(), Readers(people, habits, seed), topics, seed=seed)

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
                for page in range(number, pages, readers):
                    if stop():
                        return
                    try:
                        await self._read_page(http, items, producer, page_size, page)
                    except httpx.HTTPError:
                        self.totals.failures += 1
                        await asyncio.sleep(0.5)
                    progress(self.totals)

            await asyncio.gather(*(reader(number) for number in range(readers)))
        return self.totals

    async def _read_page(
        self,
        http: httpx.AsyncClient,
        items: Sequence[dict[str, Any]],
        producer: Producer,
        page_size: int,
        number: int,
    ) -> None:
        # A generator for each page, so that no answer's timing changes who reads what.
        rng = np.random.default_rng([self._seed, number])
        person = self._readers.reader(number, rng)
        chosen = [items[i] for i in rng.permutation(len(items))[:page_size]]
        request = {"user_id": self._users[person], "item_ids": [item["item_id"] for item in chosen]}
        began = time.perf_counter()
        answer = await http.post("/v1/covers:batchGet", json=request)
        answer.raise_for_status()
        self.totals.seconds.append(time.perf_counter() - began)
        known = {item["item_id"]: item for item in chosen}
        entries = [entry for entry in answer.json()["covers"] if entry.get("cover_id")]
        page = [await self._look(http, known[entry["item_id"]], entry["cover_id"], entry["image"]) for entry in entries]
        if page:
            page_id = uuid.UUID(int=int.from_bytes(rng.bytes(16), "big")).hex
            clicked = self.clicks(person, number, page, rng)
            echoes = [{name: entry.get(name) for name in ECHOED} for entry in entries]
            self._report(person, echoes, clicked, page_id, producer)

    async def _look(self, http: httpx.AsyncClient, item: Mapping[str, Any], cover_id: str, image: str) -> Seen:
        """Download a cover as a browser would (and cache it as one would), and see it."""
        if cover_id not in self._pictures:
            answer = await http.get(image)
            answer.raise_for_status()
            with Image.open(io.BytesIO(answer.content)) as opened:
                self._pictures[cover_id] = attributes(opened)
        topic = self._topics.get(str(item.get("category") or ""), 0)
        return Seen(item.get("title") or "", topic, self._scaled(self._pictures[cover_id]))

    def _scaled(self, raw: Floats) -> Floats:
        if self._standardise is None:
            if len(self._pictures) < SCALE_PICTURES:
                return np.zeros(len(NAMES))
            self._standardise = Standardiser.fit(np.stack(list(self._pictures.values())))
        return self._standardise(raw)

    def clicks(self, person: int, number: int, page: Sequence[Seen], rng: np.random.Generator) -> NDArray[np.bool_]:
        """Which entries of the page with this number the person clicks."""
        pictures = np.stack([seen.picture for seen in page])
        topics, titles = [seen.topic for seen in page], [seen.title for seen in page]
        return self._readers.clicks(person, number, pictures, topics, titles, rng)

    def _report(
        self,
        person: int,
        echoes: Sequence[Mapping[str, Any]],
        clicked: NDArray[np.bool_],
        page_id: str,
        producer: Producer,
    ) -> None:
        looked_at = self._readers.looked_at(len(echoes)).tolist()
        for position, (echo, click) in enumerate(zip(echoes, clicked.tolist(), strict=True)):
            impression_id = f"{page_id}.{position}"
            common: dict[str, Any] = {
                **echo,
                "user_id": self._users[person],
                "impression_id": impression_id,
                "page_id": page_id,
                "surface": SURFACE,
                "position": position,
                "position_propensity": looked_at[position],
                "time": datetime.now(UTC),
            }
            kinds = [BehaviorKind.IMPRESSION, BehaviorKind.CLICK] if click else [BehaviorKind.IMPRESSION]
            for kind in kinds:
                event = UserBehavior(event_id=f"{impression_id}.{kind}", kind=kind, **common)
                producer.send_event(event, event.event_id)
            self.totals.impressions += 1
            self.totals.clicks += int(click)
        self.totals.pages += 1


def read_items(catalogue: Path) -> list[dict[str, Any]]:
    """The items of a JSONL catalogue, as a platform knows its own.

    Raises:
        UserError: it cannot be read, holds no item, or a row that is none.
    """
    try:
        lines = catalogue.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{catalogue}: not UTF-8 text") from None
    items: list[dict[str, Any]] = []
    for row, line in enumerate(lines, 1):
        if line.strip():
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                item = None
            if not isinstance(item, dict) or not isinstance(item.get("item_id"), str):
                raise UserError(f"{catalogue.name} row {row}: no JSON object with an item_id")
            items.append(item)
    if not items:
        raise UserError(f"{catalogue}: no items in it")
    return items


def look_for(api: str) -> None:
    """
    Raises:
        UserError: that is no address.
        Fault: nobody answers there.
    """
    try:
        httpx.get(f"{api}/healthz", timeout=5).raise_for_status()
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise UserError(f"{api!r} is no address of an api, such as http://127.0.0.1:8080") from None
    except httpx.HTTPError as error:
        raise Fault(f"no api answers at {api}: {error}") from None
