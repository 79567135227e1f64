"""What a covers worker counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from workers import tracing

OUTCOMES = Counter("icg_covers_outcomes", "Events by how they ended.", ["outcome"])
DEAD_LETTERS = Counter("icg_covers_dead_letters", "Events that were bad.")
DRAWN = Counter("icg_covers_drawn", "Covers drawn.")
REUSED = Counter("icg_covers_reused", "Covers found in the store after a crash or a repeated event, not drawn again.")
GATE_REFUSALS = Counter("icg_covers_gate_refusals", "Covers under the quality gate.", ["kind"])
REFERENCE_FALLBACKS = Counter("icg_covers_reference_fallbacks", "Items whose neutral cover was refused.")
VECTOR_PROBLEMS = Counter("icg_covers_vector_problems", "Segments drawn neutral for want of a vector.", ["problem"])
FAULTS = Counter("icg_covers_faults", "Faults of ours, each retried.", ["kind"])
ASKED_AGAIN = Counter("icg_covers_asked_again", "Times that a message was asked for again that did not come.")
SWAPS = Counter("icg_covers_release_swaps", "Releases taken into use.")
REFUSED = Counter("icg_covers_releases_refused", "Releases that were wrong.")
RELEASE = Gauge("icg_release", "Number of the release in use.")
LAG = Gauge("icg_covers_lag", "Messages that the group has not committed.", ["topic"])
PENDING = Gauge("icg_covers_pending", "Events taken and not finished.")
BATCH_ITEMS = Histogram("icg_covers_batch_items", "Items in a batch.", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32))
BATCH_FILL = Histogram(
    "icg_covers_batch_fill", "Items in a batch over its size.", buckets=(0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)
)
BUSY = Counter("icg_covers_generator_busy_seconds", "Seconds that the generator has drawn; its rate is its busy share.")
STAGES = Histogram(
    "icg_covers_stage_seconds",
    "Seconds by stage of an event.",
    ["stage"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
READY = Histogram(
    "icg_covers_ready_seconds",
    "Seconds from an event's own Kafka timestamp to its cover-ready, queueing included.",
    ["topic"],
    buckets=(0.25, 0.5, 1, 2, 3, 5, 8, 13, 30, 60, 300, 1800),
)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A part of an event's work: a span of its trace, and its seconds in `STAGES` unless it fails."""
    begun = time.monotonic()
    with tracing.span(name):
        yield
    STAGES.labels(name).observe(time.monotonic() - begun)


def lap(done: tracing.Lap) -> None:
    """A part of the work of a whole batch, in `STAGES` once."""
    STAGES.labels(done.name).observe(done.seconds)
