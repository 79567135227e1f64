"""Where vectors come from: covers from their sidecars in S3, people from Feast."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np

from workers.exceptions import Fault
from workers.features import Features
from workers.preferences.learner import OtherSpace
from workers.preferences.pairs import Floats
from workers.records import sidecar_key
from workers.storage import ObjectStore, retrying

log = logging.getLogger(__name__)

CACHED = 200_000
"""Cover embeddings kept for all partitions of this process: 50 MB at dimension 64."""
THREADS = 16
PEOPLE = ("user_embedding:embedding", "user_embedding:space", "user_segment:segment_id")
SEGMENTS = ("segment_profile:vector", "segment_profile:space")


class _Sidecar(msgspec.Struct):
    cover_id: str
    embedding: list[float]
    space: str


_decode = msgspec.json.Decoder(_Sidecar).decode


class Stores:
    """`learner.Sources` over S3 and Feast. A store that is away is waited for; so both calls block."""

    def __init__(
        self,
        store: ObjectStore,
        features: Features,
        stop: threading.Event,
        on_retry: Callable[[Fault], None] | None = None,
    ) -> None:
        self._store, self._features = store, features
        self._stop, self._on_retry = stop, on_retry
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="sidecars")
        self._cache: OrderedDict[tuple[str, str], tuple[str, Floats]] = OrderedDict()

    def covers(self, wanted: Sequence[tuple[str, str]], space: str) -> list[Floats | OtherSpace | None]:
        missing = [cover for cover in wanted if cover not in self._cache]
        for cover, found in zip(missing, self._threads.map(self._fetch, missing), strict=True):
            if found is not None:
                self._cache[cover] = found
        answers: list[Floats | OtherSpace | None] = []
        for cover in wanted:
            known = self._cache.get(cover)
            if known is None:
                answers.append(None)
                continue
            self._cache.move_to_end(cover)
            answers.append(known[1] if known[0] == space else OtherSpace())
        while len(self._cache) > CACHED:
            self._cache.popitem(last=False)
        return answers

    def _fetch(self, cover: tuple[str, str]) -> tuple[str, Floats] | None:
        key = sidecar_key(*cover)
        stored = retrying(lambda: self._store.get(key), what="read sidecar", stop=self._stop, on_retry=self._on_retry)
        if stored is None:
            return None
        try:
            sidecar = _decode(stored.data)
            embedding = np.array(sidecar.embedding, np.float32)
            if sidecar.cover_id != cover[1] or embedding.ndim != 1 or not np.isfinite(embedding).all():
                raise ValueError("of another cover, or not finite")
        except (msgspec.DecodeError, ValueError) as error:
            log.error("%s is no sidecar: %s", key, error)
            return "", np.zeros(0, np.float32)  # immutable, so it stays bad: of no space that there is
        return sidecar.space, embedding

    def people(self, user_ids: list[str], space: str, dimension: int) -> Floats:
        vectors = np.zeros((len(user_ids), dimension), np.float32)
        rows = self._read(PEOPLE, "user_id", user_ids)
        cold: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            vector = row["embedding"] if row["space"] == space else None
            if vector is not None and len(vector) == dimension:
                vectors[number] = vector
            elif row["segment_id"] is not None:
                cold.setdefault(row["segment_id"], []).append(number)
        if cold:
            for row in self._read(SEGMENTS, "segment_id", list(cold)):
                vector = row["vector"] if row["space"] == space else None
                if vector is not None and len(vector) == dimension:
                    vectors[cold[row["segment_id"]]] = vector
        return vectors

    def _read(self, features: Sequence[str], key: str, values: list[str]) -> list[dict[str, Any]]:
        entities = [{key: value} for value in values]
        return retrying(
            lambda: self._features.read(features, entities),
            what="read vectors",
            stop=self._stop,
            on_retry=self._on_retry,
        )

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
