"""A broker that has lost what was to be read next is an error that is seen, not a silent jump to what it still has."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.stream_world import World
from tests.servers import Light
from tests.zygote import Zygote
from workers.settings import Covers, Feast


@pytest.fixture
def world(_applied: Feast, tmp_path: Path) -> Iterator[World]:
    with Light(tmp_path / "servers") as servers:
        shutil.copytree(_applied.repo, tmp_path / "feast")
        feast = Feast(repo=tmp_path / "feast", yaml=tmp_path / "feast" / "feature_store.yaml")
        quick = servers.kafka.model_copy(update={"session_timeout_seconds": 3.0, "heartbeat_seconds": 1.0})
        # No release: nothing is drawn here.
        world = World(tmp_path, quick, servers.s3, feast, tmp_path / "no-model", Covers(threads=1))
        yield world
        world.close()


def test_messages_that_the_broker_dropped_end_the_worker_with_a_line(world: World, zygote: Zygote) -> None:
    first = world.send_raw(b"not json", key="one-partition")
    with zygote.start("covers", [], world.environment(), world.folder / "first.log").running() as child:
        world.wait([first], 60, child.check)
        assert child.terminate() == 0
    # The mock cluster keeps 5 MiB of a partition.
    lost = [world.send_raw(b"not json either", key="one-partition")]
    for seed in range(40):
        world.producer.send("item-publish", random.Random(seed).randbytes(200_000), "one-partition").result(20)
    log = world.folder / "second.log"
    with zygote.start("covers", [], world.environment(), log).running() as child:
        assert child.wait(120) == 1
    assert "covers cannot go on: item-publish: the broker no longer has the next offset" in log.read_text()
    world.look(0.5)
    assert not set(lost) & world.dead.keys()
