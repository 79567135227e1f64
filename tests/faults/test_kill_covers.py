"""SIGKILL at random moments: nothing is lost, nothing is drawn twice under another name, the bytes are the same."""

import contextlib
import json
import os
import random
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.stream_world import World, picture, publish
from tests.servers import Light
from tests.zygote import Child, Zygote
from workers.covers.inflight import GIVE_UP, parse
from workers.events import Outcome
from workers.records import cover_key, sha256
from workers.settings import Covers, Feast

# As small as the real classes go: 50 ms a cover on one core.
SMALL = Covers(steps=2, width=32, height=32, slots=4, threads=1, batch_items=4)
ITEMS = 24
KILLS = 3

Source = tuple[str, int, int]


Make = Callable[[], World]


@pytest.fixture
def make_world(_applied: Feast, tiny_model: Path, tmp_path: Path) -> Iterator[Make]:
    """Makes worlds that share nothing but the model."""
    with contextlib.ExitStack() as stack:

        def make() -> World:
            folder = tmp_path / uuid.uuid4().hex[:8]
            servers = stack.enter_context(Light(folder / "servers"))
            shutil.copytree(_applied.repo, folder / "feast")
            feast = Feast(repo=folder / "feast", yaml=folder / "feast" / "feature_store.yaml")
            # A killed member is missed after 3 s instead of 6.
            quick = servers.kafka.model_copy(update={"session_timeout_seconds": 3.0, "heartbeat_seconds": 1.0})
            world = World(folder, quick, servers.s3, feast, tiny_model, SMALL)
            stack.callback(world.close)
            world.release()
            return world

        yield make


def send(world: World) -> list[Source]:
    sources = []
    for number in range(ITEMS):
        reference = None
        if number % 4 == 0:
            world.store.put_new(f"art/{number}.png", picture(number), "image/png")
            reference = f"s3://{world.store.bucket}/art/{number}.png"
        sources.append(world.send(publish(f"item-{number}", reference_image=reference)))
    return sources


def ended(world: World, sources: list[Source]) -> int:
    world.look()
    return len(set(sources) & (world.ready.keys() | world.dead.keys()))


def covers_of(world: World) -> dict[str, dict[str, tuple[str, str, str]]]:
    """Item and segment to cover_id, sha256 of the bytes that are there, and fallback."""
    found: dict[str, dict[str, tuple[str, str, str]]] = {}
    for number in range(ITEMS):
        item_id = f"item-{number}"
        manifest = world.manifest(item_id)
        assert manifest is not None
        assert (manifest.item_version, manifest.generation, manifest.state) == (1, 1, "ready")
        for segment, renditions in manifest.covers.items():
            cover = renditions["default"]
            stored = world.store.get(cover_key(item_id, cover.cover_id))
            assert stored is not None
            assert sha256(stored.data) == cover.sha256
            found.setdefault(item_id, {})[segment] = (cover.cover_id, cover.sha256, cover.fallback or "")
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_random_moments_it_ends_like_an_undisturbed_run(make_world: Make, zygote: Zygote) -> None:
    disturbed, undisturbed = make_world(), make_world()
    # Its own seed each time, printed by pytest when the test fails.
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    reference = zygote.start("covers", [], undisturbed.environment(), undisturbed.folder / "covers.log")
    child = zygote.start("covers", [], disturbed.environment(), disturbed.folder / "covers.log")
    with reference.running():
        expected = send(undisturbed)
        sources = send(disturbed)
        for kill in range(1, KILLS + 1):
            # Between two ends, in the middle of a batch as a rule.
            _until_ended(disturbed, sources, kill * ITEMS // (KILLS + 2) + moments.randrange(4), child)
            time.sleep(moments.uniform(0, 0.5))
            _kill_no_suspect(disturbed, child)
            child = zygote.start("covers", [], disturbed.environment(), disturbed.folder / "covers.log")
        with child.running():
            disturbed.wait(sources, 120, child.check)
        undisturbed.wait(expected, 120, reference.check)
    assert disturbed.dead == {}
    ours, theirs = covers_of(disturbed), covers_of(undisturbed)
    assert ours == theirs
    for segments in ours.values():
        assert list(segments) == ["neutral", "a", "b", "c"]
        assert len({cover_id for cover_id, _, _ in segments.values()}) == 4
    # Each cover and each sidecar once, and no other object: what was drawn again was the same cover.
    assert len(list(disturbed.store.list("covers/"))) == 2 * 4 * ITEMS
    for source in sources:
        events = disturbed.ready[source]
        assert {event.outcome for event in events} == {Outcome.DRAWN}
        assert len({event.event_id() for event in events}) == 1


def _until_ended(world: World, sources: list[Source], count: int, child: Child) -> None:
    until = time.monotonic() + 120
    while ended(world, sources) < count:
        assert time.monotonic() < until
        child.check()


def _kill_no_suspect(world: World, child: Child) -> None:
    """Kill it, but not with an event alone that was in flight at two deaths: that one would rightly be given up."""
    until = time.monotonic() + 120
    while True:
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(1)  # what it has asked of the store is done meanwhile
        world.look()
        if not _suspects(world) - world.ready.keys():  # what has ended stays in a record until its next writing
            child.kill()
            return
        os.kill(child.pid, signal.SIGCONT)
        assert time.monotonic() < until
        time.sleep(0.2)


def _suspects(world: World) -> set[Source]:
    found = set()
    for key in world.store.list("inflight/"):
        _, topic, partition = key.removesuffix(".json").split("/")
        if (stored := world.store.get(key)) is not None:
            deaths = parse(stored.data)
            found |= {(topic, int(partition), offset) for offset, count in deaths.items() if count >= GIVE_UP}
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_that_come_and_go_share_the_work_and_draw_nothing_twice(make_world: Make, zygote: Zygote) -> None:
    world = make_world()
    sources = send(world)
    first = zygote.start("covers", [], world.environment(), world.folder / "first.log")
    with first.running():
        _until_ended(world, sources, 4, first)
        second = zygote.start("covers", [], world.environment(), world.folder / "second.log")
        with second.running():
            # The group is divided anew while both draw; then one is gone in the middle of it.
            _until_ended(world, sources, 10, first)
            first.kill()
            world.wait(sources, 120, second.check)
    assert world.dead == {}
    assert len(covers_of(world)) == ITEMS
    assert len(list(world.store.list("covers/"))) == 2 * 4 * ITEMS
    for source in sources:
        assert {event.outcome for event in world.ready[source]} == {Outcome.DRAWN}
        assert len({event.event_id() for event in world.ready[source]}) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_event_that_kills_the_worker_is_found_and_its_neighbours_get_covers(
    make_world: Make, zygote: Zygote
) -> None:
    world = make_world()
    # One partition, so that the neighbours are in flight with it.
    value = publish("x").model_dump(mode="json", exclude_none=True)
    events = [{**value, "item_id": f"item-{n}", "title": "Good" if n != 2 else "Deadly"} for n in range(6)]
    sources = [world.send_raw(json.dumps(event).encode(), key="one-partition") for event in events]
    deaths = 0
    until = time.monotonic() + 200
    while ended(world, sources) < len(sources):
        assert time.monotonic() < until
        child = zygote.start("covers", ["Deadly"], world.environment(), world.folder / "covers.log")
        with child.running():
            while child.status() is None and ended(world, sources) < len(sources):
                assert time.monotonic() < until
        deaths += ended(world, sources) < len(sources)
    assert deaths == GIVE_UP
    assert list(world.dead) == [sources[2]]
    assert world.reason(sources[2]) == f"drawing it has ended the worker {GIVE_UP} times"
    for number in (0, 1, 3, 4, 5):
        assert world.ready[sources[number]][0].outcome is Outcome.DRAWN
