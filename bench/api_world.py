"""Items, covers and readers for the api's bench, tests and gallery, written as the services write them.

The pictures are drawn here (a scene from the title's hash, a palette from the segment's), so that a page of them looks
like a page of covers without any model.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
from PIL import Image, ImageDraw

from icg.preference import Head
from infra.servers.process import free_port
from workers.covers.commit import feast_row
from workers.events import NEUTRAL, Source
from workers.features import Features
from workers.policies import pack
from workers.records import (
    RELEASE_KEY,
    CoverInputs,
    Manifest,
    ManifestCover,
    Release,
    Rendition,
    Sidecar,
    cover_key,
    manifest_key,
    seed_of,
    sha256,
    sidecar_key,
)
from workers.releases import Releases
from workers.settings import Settings, environment
from workers.storage import ObjectStore

SEGMENTS = (NEUTRAL, *(f"s-{k}" for k in range(1, 9)))
TITLES = (
    "The Lantern at Night", "A Red Kite", "Salt and Harbour", "The Glass Orchard", "Owl in the Belfry",
    "Nine Paper Boats", "The Clockmaker's Fox", "Winter Bicycle", "A Field of Sunflowers", "The Blue Teapot",
    "Mountain Railway", "The Last Lighthouse", "Bread and Candles", "A Whale Beneath", "The Tin Soldier",
    "Garden of Moths", "The Cartographer", "Rain over Lisbon", "A Small Observatory", "The Honey Thief",
    "Balloons at Dawn", "The Chess Automaton", "Driftwood", "An Island of Cats",
)  # fmt: skip
RELEASE = 5
_RUN = """
import signal, sys, threading
from workers import logs
from workers.api.service import run
from workers.settings import settings

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
logs.configure(settings())
sys.exit(run(settings(), stop))
"""
"""What `icg run api` does, without the command line of all other rooms."""
SPACE = sha256(b"a space")


@dataclass(frozen=True)
class World:
    """What was written: item ids, and item_id -> segment_id -> cover_id."""

    items: list[str]
    covers: dict[str, dict[str, str]] = field(default_factory=dict)


def publish(
    features: Features | None,
    store: ObjectStore | None,
    item_id: str,
    *,
    title: str | None = "A title",
    segments: Sequence[str] = SEGMENTS,
    fallbacks: Mapping[str, str] | None = None,
    state: str = "ready",
    version: int = 1,
    generation: int = 1,
    reference: str | None = None,
    pictures: bool = False,
    size: int = 64,
) -> dict[str, str]:
    """One item as `covers` would leave it: pictures and sidecars, manifest, Feast row. Returns segment -> cover_id.

    Args:
        features, store: where to write; None leaves that part out, as an interrupted worker would.
        fallbacks: segment -> what stands in for its cover.
        pictures: draw and store them, and a sidecar each; without, only ids exist.
    """
    fallbacks = dict(fallbacks or {})
    own = {segment: _sidecar(item_id, version, segment, title, size) for segment in segments}
    # A segment under the gate points to the neutral cover, or to our copy of the reference image.
    copy = _sidecar(item_id, version, "reference", title, size)
    stand_ins = {"neutral": own.get(NEUTRAL, copy), "reference": copy}
    shown = {segment: stand_ins[fallbacks[segment]] if segment in fallbacks else own[segment] for segment in segments}
    if store is not None and pictures:
        copied = {"reference": copy} if "reference" in fallbacks.values() else {}
        reference = reference or _write_pictures(store, item_id, title or "", own | copied, size)
    manifest = Manifest(
        item_id=item_id,
        item_version=version,
        state="ready" if state == "ready" else "retracted",
        generation=generation,
        release=RELEASE,
        title=title,
        reference_image=reference,
        category="tale",
        language="en",
        published_by=_source(item_id),
        source=_source(item_id),
        covers={
            segment: {
                "default": ManifestCover(
                    cover_id=sidecar.cover_id,
                    sha256=sidecar.sha256,
                    width=size,
                    height=size,
                    rewards=sidecar.rewards,
                    fallback=fallbacks.get(segment),  # type: ignore[arg-type]
                )
            }
            for segment, sidecar in shown.items()
        },
    )
    if store is not None:
        current = store.get(manifest_key(item_id))
        store.put_if(manifest_key(item_id), manifest.encode(), current.etag if current else None)
    if features is not None:
        features.push("item_covers", [row(manifest)])
    return {segment: sidecar.cover_id for segment, sidecar in shown.items()}


def publish_rows(
    features: Features, items: Sequence[str], segments: Sequence[str] = SEGMENTS, *, space: str = SPACE
) -> None:
    """Only the Feast rows of many items, for benches; their covers' embeddings are random."""
    rng, dimension = np.random.default_rng(0), 64
    batch: list[dict[str, object]] = []
    for item in items:
        cover_ids = [sha256(f"{item}/{segment}".encode()) for segment in segments]
        batch.append(
            {
                "item_id": item,
                "item_version": 1,
                "state": "ready",
                "generation": 1,
                "release": RELEASE,
                "reference_image": f"s3://icg/references/{item}.png",
                "segment_ids": list(segments),
                "cover_ids": cover_ids,
                "fallbacks": [""] * len(segments),
                "scores": [0.5] * len(segments),
                "embeddings": pack(rng.normal(0, dimension**-0.5, (len(segments), dimension)).tolist(), dimension),
                "space": space,
                "width": 64,
                "height": 64,
            }
        )
    features.push("item_covers", batch)


def row(manifest: Manifest) -> dict[str, object]:
    """The Feast row of a manifest."""
    return feast_row(manifest, "default")


def catalogue(features: Features, store: ObjectStore, items: int = 24, size: int = 64) -> World:
    """Items with pictures for every segment, some under the gate, and a release: what the gallery shows."""
    world = World([])
    for k in range(items):
        title = TITLES[k % len(TITLES)]
        item_id = title.lower().replace(" ", "-").replace("'", "") + (f"-{k}" if k >= len(TITLES) else "")
        under = {f"s-{1 + k % 8}": "neutral"} if k % 5 == 2 else {}
        world.items.append(item_id)
        world.covers[item_id] = publish(
            features, store, item_id, title=title, fallbacks=under, pictures=True, size=size
        )
    release = Release(number=RELEASE, parts={"space": SPACE})
    store.put_new(RELEASE_KEY, release.encode(), "application/json")
    return world


def tastes(features: Features, settings: Settings, users: Sequence[str], dimension: int = 64) -> str:
    """A released preference head, and random embeddings of users in its space: what `softmax` and `thompson` ask for.

    Returns:
        The space.
    """
    store = ObjectStore(settings.s3)
    store.ensure_bucket()
    releases = Releases(store, settings.cache)
    space = releases.put_part("space", {"config.json": b"{}"})
    Head.start(space, dimension).save(settings.cache / "head")
    files: dict[str, Path | bytes] = {path.name: path for path in (settings.cache / "head").iterdir()}
    head = releases.put_part("preference", files, space=space)
    releases.publish({"space": space, "preference": head}, "a world", "preference")
    vectors = np.random.default_rng(1).normal(0, dimension**-0.5, (len(users), dimension)).astype(np.float32)
    rows = [{"user_id": user, "embedding": vector, "space": space} for user, vector in zip(users, vectors, strict=True)]
    features.push("user_embedding", rows)
    return space


def readers(features: Features, users: Mapping[str, tuple[str, str]]) -> None:
    """user_id -> (segment, parent), as the segment job writes them."""
    rows = [
        {"user_id": user, "segment_id": segment, "parent": parent, "segments": SPACE}
        for user, (segment, parent) in users.items()
    ]
    features.push("user_segment", rows)


@contextmanager
def served(settings: Settings, log: Path | None = None, seconds: float = 60, program: str = _RUN) -> Iterator[str]:
    """The api as a process of its own; gives its address once it is ready."""
    port = free_port()
    api = settings.api.model_copy(update={"host": "127.0.0.1", "port": port})
    # Every field of the api's section by name: `model_copy` notes what was set.
    variables = environment(s3=settings.s3, feast=settings.feast, api=api) | {
        "OMP_NUM_THREADS": "1",
        "ICG_CACHE": str(settings.cache),
    }
    with open(log or os.devnull, "ab") as output:
        process = subprocess.Popen([sys.executable, "-c", program], env=variables, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + seconds
        while not _ready(address):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the api did not become ready (exit status {process.poll()})")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def running(settings: Settings, seconds: float = 60) -> Iterator[str]:
    """The api as a thread of this process, on a port of its own; gives its address once it is ready."""
    from workers.api.service import run

    port = free_port()
    stop = threading.Event()
    chosen = settings.model_copy(update={"api": settings.api.model_copy(update={"host": "127.0.0.1", "port": port})})
    thread = threading.Thread(target=run, args=(chosen, stop), name="api")
    thread.start()
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + seconds
        while not _ready(address):
            if not thread.is_alive() or time.monotonic() > until:
                raise RuntimeError("the api did not become ready")
            time.sleep(0.05)
        yield address
    finally:
        stop.set()
        thread.join(60)


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _source(item_id: str) -> Source:
    return Source(topic="item-publish", partition=int(sha256(item_id.encode())[:2], 16) % 4, offset=17, event_id=None)


def _sidecar(item_id: str, version: int, segment: str, title: str | None, size: int) -> Sidecar:
    inputs = CoverInputs(
        item_id=item_id,
        item_version=version,
        title_sha256=sha256((title or "").encode()),
        reference_sha256=None,
        vector_sha256=NEUTRAL if segment == NEUTRAL else sha256(segment.encode()),
        base=sha256(b"base"),
        mllm=sha256(b"mllm"),
        adapter=sha256(b"adapter"),
        sampler={"steps": 20, "branch": 0.5, "guidance": 1.0, "scheduler": "DDIM", "dtype": "float32", "slots": 8},
        seed=seed_of(item_id, version),
        rendition=Rendition(width=size, height=size),
    )
    cover_id = inputs.cover_id()
    numbers = np.random.default_rng(int(cover_id[:8], 16)).random(3)
    return Sidecar(
        cover_id=cover_id,
        item_id=item_id,
        item_version=version,
        segment_id=segment,
        sha256=cover_id,
        bytes=1800,
        inputs=inputs,
        rewards={
            "aesthetic": round(0.35 + 0.6 * float(numbers[0]), 4),
            "relevance": round(0.3 + 0.65 * float(numbers[1]), 4),
            "preference": round(-0.6 + 2.4 * float(numbers[2]), 4),
        },
        embedding=[0.0] * 64,
        space=SPACE,
        release=RELEASE,
        source=_source(item_id),
        time=datetime(2026, 11, 21, 9, 30, tzinfo=UTC),
    )


def _write_pictures(store: ObjectStore, item_id: str, title: str, own: Mapping[str, Sidecar], size: int) -> str:
    for segment, sidecar in own.items():
        store.put_new(cover_key(item_id, sidecar.cover_id), draw(title, segment, size), "image/webp")
        store.put_new(sidecar_key(item_id, sidecar.cover_id), sidecar.encode(), "application/json")
    key = f"references/{item_id}.png"
    store.put_new(key, draw(title, "reference", 160, "PNG"), "image/png")
    return store.address(key)


def draw(title: str, segment: str, size: int, kind: str = "WEBP") -> bytes:
    """A small landscape: the title decides the scene, the segment the palette."""
    scene = np.random.default_rng(int(sha256(title.encode())[:8], 16))
    tone = np.random.default_rng(int(hashlib.blake2b(segment.encode(), digest_size=4).hexdigest(), 16))
    big = 4 * size
    hue = float(tone.random())
    grey = 0.08 if segment == NEUTRAL else 0.48
    sky, land = _colour(hue, grey, 0.66), _colour(hue + 0.06, grey * 1.3, 0.36)
    light = _colour(hue + 0.12, grey * 0.45, 1.0)
    rows = np.linspace(0, 1, big)[:, None, None]
    base = (np.array(sky) * (1 - rows) + np.array(light) * rows * 0.9) * np.ones((1, big, 1))
    picture = Image.fromarray(base.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    x, y, radius = (scene.random(3) * (0.6, 0.35, 0.12) + (0.2, 0.15, 0.08)) * big
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=light)
    for layer in range(3):
        heights = (0.55 + 0.13 * layer + 0.12 * (scene.random(6) - 0.5)) * big
        points = [(k * big / 5, float(h)) for k, h in enumerate(heights)]
        shade = tuple(int(c * (1.5 - 0.45 * layer)) for c in land)
        pen.polygon([(0, big), *points, (big, big)], fill=shade)
    for _ in range(int(scene.integers(2, 6))):
        left, top = scene.random() * big * 0.85, (0.45 + 0.35 * scene.random()) * big
        wide = (0.05 + 0.08 * scene.random()) * big
        pen.rectangle((left, top, left + wide, top + 1.8 * wide), fill=_colour(hue + 0.14, grey * 0.8, 0.92))
        pen.polygon(
            [(left - wide * 0.2, top), (left + wide / 2, top - wide), (left + wide * 1.2, top)],
            fill=_colour(hue + 0.5, grey, 0.5),
        )
    data = io.BytesIO()
    picture.resize((size, size), Image.Resampling.LANCZOS).save(data, kind, quality=90)
    return data.getvalue()


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)
