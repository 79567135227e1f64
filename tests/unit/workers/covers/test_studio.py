"""Which threads torch gets, and what becomes of jobs when drawing goes wrong in a way that nobody foresaw."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from opentelemetry.context import Context
from PIL import Image

from workers.covers.inflight import InFlight
from workers.covers.patience import Patience
from workers.covers.studio import Job, Studio, give_threads
from workers.health import Health
from workers.settings import Covers
from workers.storage import ObjectStore


@pytest.mark.parametrize(("threads", "own"), [(3, 3), (0, 2)])  # 0: torch's own choice
def test_only_the_generator_splits_its_work(threads: int, own: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1) as drawer, ThreadPoolExecutor(1) as judges:
            give_threads(drawer, threads)
            judged = judges.submit(torch.get_num_threads).result()
            assert (drawer.submit(torch.get_num_threads).result(), judged, torch.get_num_threads()) == (own, 1, 1)
    finally:
        torch.set_num_threads(before)


class OneTooFew:
    """A generator that leaves out the last cover of each item."""

    def encode(self, items: Sequence[object]) -> None:
        return None

    def generate(self, context: object, vectors: Sequence[Sequence[object]], seeds: Sequence[int]) -> Any:
        return [[Image.effect_noise((32, 32), 80).convert("RGB") for _ in row[1:]] for row in vectors]


class Judge:
    def score(self, images: Sequence[object], titles: Sequence[object]) -> Any:
        return [{} for _ in images]

    def embed(self, images: Sequence[object]) -> Any:
        return [[0.0] for _ in images]


def test_what_nobody_foresaw_reaches_whoever_waits_for_the_job(store: ObjectStore) -> None:
    """It ended the batch's task, and the event waited for the watchdog."""
    loaded: Any = SimpleNamespace(generator=OneTooFew(), judge=Judge())
    covers: Any = [SimpleNamespace(cover_id=name, vector=None) for name in "ab"]

    async def scenario() -> None:
        health = Health()
        with ThreadPoolExecutor(2) as pool:
            patience, inflight = Patience(pool, health), InFlight(store)
            studio = Studio(Covers(threads=1), inflight, patience, health)
            studio.loaded = loaded
            inflight.load(("item-publish", 0))
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            job = Job("i", ("item-publish", 0), 0, "A boat", None, covers, 1, loaded, future, 0, False, Context())
            running = asyncio.create_task(studio.run())
            try:
                with pytest.raises(RuntimeError):
                    await asyncio.wait_for(studio.draw(job), 30)
            finally:
                running.cancel()

    asyncio.run(scenario())
