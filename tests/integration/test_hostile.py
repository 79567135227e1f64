"""Hostile events through covers, preferences and audit: nobody ends, each event has an outcome, the bad ones a reason.

By night, because starting three services takes longer than most tests; on real servers, because the embedded broker
drops what is more than 5 MiB of a partition.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.stream_world import World
from tests.faults.audited import rows_found, rows_wanted
from tests.hostile import Hostile, hostile, put_bombs
from tests.servers import Real
from tests.zygote import Zygote
from workers.settings import Covers, Feast, References

SMALL = Covers(steps=2, width=32, height=32, slots=4, threads=1, batch_items=4)
QUICK = {
    "ICG_AUDIT_BATCH_SECONDS": "0.5",
    "ICG_PREFERENCES_CHECKPOINT_EVENTS": "1000",
    "ICG_PREFERENCES_RELEASE_PAIRS": str(10**9),
}

Source = tuple[str, int, int]


@pytest.fixture
def world(adapter: str, _real: Real, _applied: Feast, tiny_model: Path, tmp_path: Path) -> Iterator[World]:
    shutil.copytree(_applied.repo, tmp_path / "feast")
    feast = Feast(repo=tmp_path / "feast", yaml=tmp_path / "feast" / "feature_store.yaml")
    servers = _real.fresh()
    world = World(tmp_path, servers.kafka, servers.s3, feast, tiny_model, SMALL, References(timeout_seconds=1.0))
    world.release(("a",))
    yield world
    world.close()


@pytest.mark.night
@pytest.mark.real("kafka", "s3", only=True)
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("count", [300, 10_000])
def test_hostile_events_end_nobody_and_each_ends_with_a_reason(world: World, zygote: Zygote, count: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    variables = world.environment() | QUICK
    sent: dict[Source, Hostile] = {}
    with contextlib.ExitStack() as running:
        children = [
            running.enter_context(zygote.start(name, [], variables, world.folder / f"{name}.log").running())
            for name in ("covers", "preferences", "audit")
        ]

        def check() -> None:
            for child in children:
                child.check()

        sending = [
            (each, world.producer.send(each.topic, each.value, each.key, each.headers))
            for each in hostile(seed, count, put_bombs(world.store))
        ]
        for each, place in sending:
            sent[(each.topic, *place.result(300))] = each
        # Behaviour that is good has no outcome that anybody publishes; audit's row says that it was read.
        expected = {source for source, each in sent.items() if each.topic != "user-behavior" or each.bad}
        world.wait(expected, 120 + count / 2, check)
        until = time.monotonic() + 120 + count / 50
        while (found := rows_found(world.settings.s3)) != (wanted := rows_wanted(world.settings.kafka)):
            assert time.monotonic() < until, sorted((wanted - found) + (found - wanted))[:5]
            check()
            world.look()
        for child in children:
            assert child.terminate(60) == 0
    world.look(1)
    kinds: Counter[tuple[str, bool]] = Counter()
    for source, each in sent.items():
        refused = source in world.dead
        kinds[each.kind, refused] += 1
        assert not (refused and source in world.ready), each
        if each.bad is not None:
            assert refused is each.bad, each
        if refused:
            assert world.reason(source).strip(), each
            (letter,) = world.dead[source]
            assert letter.value == each.value or b"dlq_truncated" in str(letter.headers).encode(), each
        elif source in world.ready:
            (event,) = world.ready[source]
            assert event.outcome == "drawn" or event.reason or event.outcome in {"superseded", "retracted"}, each
    print(sorted(kinds.items()))
    for topic in ("item-publish", "item-refresh", "user-behavior"):
        assert any(source[0] == topic for source in world.dead)
    assert kinds["well-formed", False] > count / 60
