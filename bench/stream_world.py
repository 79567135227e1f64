"""A world for the covers service: embedded servers, a released model, segments in Feast, and a way to watch.

Used by `bench/stream.py` and by the tests of the service; both run it as a process of its own.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from workers.events import DEAD_LETTERS, CoverReady, Event, ItemPublish
from workers.features import Features
from workers.messaging import Follower, Message, Producer
from workers.records import Manifest, Part, Release, SegmentSet, manifest_key
from workers.releases import Releases
from workers.settings import S3, Covers, Feast, Kafka, References, Settings, environment
from workers.storage import ObjectStore

PARTS: tuple[Part, ...] = ("base", "mllm", "space", "adapter", "rewards", "preference")


def files_of(folder: Path) -> dict[str, Path | bytes]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def picture(seed: int, size: tuple[int, int] = (96, 96), kind: str = "PNG") -> bytes:
    """A small drawing, as bytes."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(value) for value in random.integers(0, 255, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = (int(value) for value in random.integers(0, min(size) // 2, 2))
        draw.ellipse((x, y, x + size[0] // 3, y + size[1] // 3), fill=tuple(int(v) for v in random.integers(0, 255, 3)))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


class World:
    """One bucket, one broker, one feature store, one model."""

    def __init__(
        self,
        folder: Path,
        kafka: Kafka,
        s3: S3,
        feast: Feast,
        model: Path,
        covers: Covers,
        references: References | None = None,
    ) -> None:
        """
        Args:
            folder: for caches and logs.
            model: a directory that `icg.init_tiny` made.
        """
        self.settings = Settings(
            kafka=kafka,
            s3=s3,
            feast=feast,
            covers=covers,
            references=references or References(),
            cache=folder / "cache",
            log_format="text",
        )
        self.folder = folder
        self.model = model
        self.store = ObjectStore(s3)
        self.store.ensure_bucket()
        self.producer = Producer(kafka, "world")
        self.releases = Releases(self.store, folder / "own-cache", self.producer)
        self.features = Features(feast)
        self.revisions: dict[Part, str] = {}
        self.vectors: dict[str, list[float]] = {}
        self.ready: dict[tuple[str, int, int], list[CoverReady]] = {}
        self.dead: dict[tuple[str, int, int], list[Message]] = {}
        self.seen: dict[tuple[str, int, int], float] = {}
        self._followers = [Follower(kafka, CoverReady.topic), Follower(kafka, DEAD_LETTERS)]

    def put_parts(self, model: Path | None = None, parts: Sequence[Part] = PARTS) -> dict[Part, str]:
        """Store a model directory's folders as parts; their revisions."""
        found: dict[Part, str] = {}
        for part in parts:
            space = (found.get("space") or self.revisions.get("space")) if part in {"adapter", "preference"} else None
            found[part] = self.releases.put_part(part, files_of((model or self.model) / part), space=space)
        return found

    def put_segments(self, names: Sequence[str], seed: int = 0, dimension: int = 64) -> str:
        """A set of segments with random vectors, in Feast and as a part; its revision."""
        random = np.random.default_rng(seed)
        vectors = random.normal(size=(len(names), dimension)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        space = self.revisions["space"]
        found = SegmentSet.model_validate(
            {
                "space": space,
                "segments": [
                    {"segment_id": name, "users": 10, "vector": vector.tolist()}
                    for name, vector in zip(names, vectors, strict=True)
                ],
            }
        )
        revision = self.releases.put_part("segments", {"segments.json": found.encode()}, space=space)
        self.vectors |= {each.segment_id: each.vector for each in found.segments}
        shared = {"space": space, "segments": revision, "users": 10}
        rows = [{"segment_id": each.segment_id, "vector": each.vector, **shared} for each in found.segments]
        self.features.push("segment_profile", rows)
        return revision

    def release(self, segments: Sequence[str] = ("a", "b", "c")) -> Release:
        """Store the model and segments and release them."""
        self.revisions = self.put_parts()
        self.revisions["segments"] = self.put_segments(segments)
        return self.releases.publish(self.revisions, "world", "base")

    def send(self, event: Event) -> tuple[str, int, int]:
        """Produce an event; the topic, partition and offset by which its end is known."""
        partition, offset = self.producer.send_event(event).result(20)
        return event.topic, partition, offset

    def send_soon(self, event: Event) -> Future[tuple[str, int, int]]:
        """As `send`, without waiting for the broker."""
        sent: Future[tuple[str, int, int]] = Future()

        def done(future: Future[tuple[int, int]]) -> None:
            if (error := future.exception()) is not None:
                sent.set_exception(error)
            else:
                sent.set_result((event.topic, *future.result()))

        self.producer.send_event(event).add_done_callback(done)
        return sent

    def send_raw(self, value: bytes | None, key: str = "raw", topic: str = ItemPublish.topic) -> tuple[str, int, int]:
        partition, offset = self.producer.send(topic, value, key).result(20)
        return topic, partition, offset

    def look(self, timeout: float = 0.1) -> None:
        """Take in what has come on `cover-ready` and `dead-letters`."""
        ready, dead = self._followers
        for message in ready.poll(1000, timeout):
            event = CoverReady.decode(message.value)
            key = (event.source.topic, event.source.partition, event.source.offset)
            self.ready.setdefault(key, []).append(event)
            self.seen.setdefault(key, time.monotonic())
        for message in dead.poll(1000, 0.01):
            headers = message.headers
            key = (headers["dlq_topic"].decode(), int(headers["dlq_partition"]), int(headers["dlq_offset"]))
            self.dead.setdefault(key, []).append(message)
            self.seen.setdefault(key, time.monotonic())

    def wait(
        self, sources: Iterable[tuple[str, int, int]], seconds: float = 60, check: Callable[[], None] | None = None
    ) -> None:
        """Until each of these events has ended.

        Raises:
            TimeoutError: naming those that have not.
        """
        wanted = set(sources)
        until = time.monotonic() + seconds
        while wanted - self.ready.keys() - self.dead.keys():
            if time.monotonic() > until:
                raise TimeoutError(f"not ended: {sorted(wanted - self.ready.keys() - self.dead.keys())}")
            if check is not None:
                check()
            self.look()

    def manifest(self, item_id: str) -> Manifest | None:
        stored = self.store.get(manifest_key(item_id))
        return Manifest.decode(stored.data) if stored else None

    def reason(self, source: tuple[str, int, int]) -> str:
        return self.dead[source][0].headers["dlq_reason"].decode()

    def environment(self) -> dict[str, str]:
        settings = self.settings
        sections = environment(
            kafka=settings.kafka,
            s3=settings.s3,
            feast=settings.feast,
            covers=settings.covers,
            references=settings.references,
        )
        return sections | {"ICG_CACHE": str(settings.cache), "ICG_LOG_FORMAT": "text"}

    def close(self) -> None:
        self.producer.close()
        for follower in self._followers:
            follower.close()
        self.features.close()


def publish(item_id: str, version: int = 1, title: str | None = None, **fields: Any) -> ItemPublish:
    return ItemPublish(item_id=item_id, item_version=version, title=title or f"The {item_id} at Night", **fields)
