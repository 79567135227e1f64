"""The learner as a service: real broker, S3 and Feast, its own process where it is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.taste_world import KEY, SPACE, TasteWorld, columns
from icg.preference import Head
from tests.waiting import until
from tests.zygote import Child, Zygote
from workers.events import DEAD_LETTERS, UserBehavior, UserErasure
from workers.features import Features
from workers.messaging import Follower, Producer
from workers.preferences.checkpoint import Checkpoints, fingerprint, of_learner, to_learner
from workers.preferences.learner import Learner
from workers.preferences.propensity import Tokens
from workers.preferences.service import run
from workers.preferences.tastes import Limits
from workers.records import sidecar_key
from workers.releases import Releases
from workers.settings import S3, Erasure, Feast, Kafka, Preferences, Settings, environment
from workers.storage import ObjectStore
from workers.users import receipts

TOPIC = UserBehavior.topic
PLAIN = {"impressions_per_window": 10**6, "pairs_per_hour": 10**6, "pairs_per_second": 1e6}
"""Nobody's pairs are too many: as in `TasteWorld.learner`."""


class Platform:
    """A bucket, a feature store and a broker with a released head and a world's covers and people."""

    def __init__(self, folder: Path, kafka: Kafka, s3: S3, feast: Feast, world: TasteWorld, **preferences: object):
        self.settings = Settings(
            kafka=kafka,
            s3=s3,
            feast=feast,
            cache=folder / "cache",
            log_format="text",
            preferences=Preferences.model_validate(
                PLAIN | {"release_pairs": 64, "checkpoint_events": 500, **preferences}
            ),
        )
        self.folder, self.world = folder, world
        self.store = ObjectStore(s3)
        self.store.ensure_bucket()
        self.producer = Producer(kafka, "platform")
        self.releases = Releases(self.store, folder / "own-cache", self.producer)
        self.features = Features(feast)
        head = folder / "head"
        world.head().save(head)
        files: dict[str, Path | bytes] = {path.name: path for path in head.iterdir()}
        revision = self.releases.put_part("preference", files, space=SPACE)
        self.first = self.releases.publish({"preference": revision}, "first", "preference")
        for item in range(world.items):
            for number in range(world.styles):
                if (item, number) not in world.missing:
                    self.put_sidecar(item, number)
        rows = [
            {"user_id": world.user(person), "embedding": vector.tolist(), "space": SPACE}
            for person, vector in enumerate(world.vectors)
        ]
        self.features.push("user_embedding", rows)

    def put_sidecar(self, item: int, number: int) -> None:
        sidecar = self.world.sidecar(item, number)
        key = sidecar_key(sidecar.item_id, sidecar.cover_id)
        assert self.store.put_new(key, sidecar.encode(), "application/json")

    def send(self, values: list[bytes], partition: int = 0) -> int:
        """To one partition; the offset after the last."""
        for value in values:
            last = self.producer.send(TOPIC, value, None, None, partition)
        return last.result(60)[1] + 1

    def state(self, partition: int = 0) -> tuple[int, str]:
        """Offset and fingerprint of the newest checkpoint, before the first: -1."""
        found = Checkpoints(self.store).newest(partition)
        if found is None:
            return -1, ""
        head = self.world.head()
        number = found[2]["release"]
        part = self.releases.release(number).parts["preference"]
        head = Head.load(self.releases.fetch("preference", part))
        limits = {
            "horizon": 600_000_000,
            "most": 2_000_000,
            "shown": 10**6,
            "limits": Limits(0.05, 0.5, 10**6),
            "rate": 1e6,
        }
        return found[0], fingerprint(to_learner(found[1], found[2], head, **limits))

    def process(self, zygote: Zygote) -> Child:
        settings = self.settings
        variables = environment(
            kafka=settings.kafka, s3=settings.s3, feast=settings.feast, preferences=settings.preferences
        )
        variables |= {"ICG_CACHE": str(settings.cache), "ICG_LOG_FORMAT": "text"}
        return zygote.start("preferences", [], variables, self.folder / "learner.log")

    def said(self) -> str:
        return (self.folder / "learner.log").read_text()


class InThread:
    """The service in a thread of this process."""

    def __init__(self, settings: Settings) -> None:
        self.stop = threading.Event()
        self.code: int | None = None

        def work() -> None:
            self.code = run(settings, self.stop)

        self.thread = threading.Thread(target=work)
        self.thread.start()

    def end(self) -> int | None:
        self.stop.set()
        self.thread.join(120)
        assert not self.thread.is_alive()
        return self.code


def straight(world: TasteWorld, values: list[bytes], partition: int = 0) -> Learner:
    """What a learner knows that read all of it at once, without a broker, a store or a break."""
    learner = world.learner(partition)
    batch = columns(values)
    learner.take(batch, Tokens([KEY]).weights(batch), world)
    return learner


@pytest.fixture
def platform(tmp_path: Path, own_kafka: Kafka, s3: S3, feast_repo: Feast) -> Iterator[Callable[..., Platform]]:
    made: list[Platform] = []

    def make(world: TasteWorld, **preferences: object) -> Platform:
        made.append(Platform(tmp_path, own_kafka, s3, feast_repo, world, **preferences))
        return made[-1]

    yield make
    for each in made:
        each.producer.close(1)
        each.features.close()


def test_clicks_become_tastes_in_feast_and_a_release(platform: Callable[..., Platform]) -> None:
    world = TasteWorld(people_count=60, items=6)
    here = platform(world)
    values = world.values(1500)
    here.send([*values[:10], b"not json", *values[10:]])
    service = InThread(here.settings)
    try:
        until(lambda: (found := here.releases.current()) is not None and found.number > here.first.number)
        people = [{"user_id": world.user(person)} for person in range(60)]
        names = ["user_taste:residual", "user_taste:space", "user_taste:pairs", "user_history:liked_covers"]
        until(lambda: sum(row["pairs"] is not None for row in here.features.read(names, people)) > 30)
        rows = [row for row in here.features.read(names, people) if row["pairs"]]
        assert all(row["space"] == SPACE for row in rows)
        assert 0 < max(np.linalg.norm(row["residual"]) for row in rows) <= 0.5
        until(lambda: any(row["liked_covers"] for row in here.features.read(names, people)))
        release = here.releases.current()
        assert release is not None
        card = here.releases.card("preference", release.parts["preference"])
        assert card.space == SPACE
        assert card.metrics["pairs"] >= 64
        assert card.metrics["log_loss_difference_upper"] <= card.metrics["margin"]
        letters = Follower(here.settings.kafka, DEAD_LETTERS)
        dead = letters.poll(10, 60)
        letters.close()
        assert [message.value for message in dead] == [b"not json"]
        assert "not JSON" in dead[0].headers["dlq_reason"].decode()
    finally:
        code = service.end()
    assert code == 0
    assert here.state()[0] > 0


@pytest.mark.slow
def test_killed_twice_the_state_is_the_one_of_a_run_without_a_break(
    platform: Callable[..., Platform], light_zygote: Zygote
) -> None:
    world = TasteWorld(people_count=60, items=6)
    here = platform(world, release_pairs=1_000_000, checkpoint_events=200)
    values = [value for value in world.values(1800) for _ in range(1 + (value[-9:-8] == b"7"))]  # some come twice
    first = here.send(values[:700])
    process = here.process(light_zygote)
    until(lambda: here.state()[0] >= 200)
    process.kill()
    here.send(values[700:])
    process = here.process(light_zygote)
    until(lambda: here.state()[0] >= first)
    process.kill()
    process = here.process(light_zygote)
    until(lambda: here.state()[0] >= len(values) // 200 * 200)
    assert process.terminate(120) == 0, here.said()

    offset, found = here.state()
    assert offset >= len(values) // 200 * 200
    whole = straight(world, values[:offset])
    assert found == fingerprint(whole)
    # And the trainer has each message once, however often it was sent.
    trainer = Checkpoints(here.store).newest("trainer")
    assert trainer is not None
    ((partition, last),) = trainer[2]["seen"]
    pairs, held = trainer[2]["numbers"][1], trainer[2]["kept"][0]
    assert partition == 0
    assert 10 < last < whole.sequence
    assert pairs + held == 32 * (last + 1)


def test_a_cover_without_its_sidecar_is_waited_for(platform: Callable[..., Platform]) -> None:
    world = TasteWorld(people_count=60, items=4, missing=frozenset({(0, 1), (1, 2)}))
    here = platform(world, release_pairs=1_000_000)
    values = world.values(1200)
    here.send(values)
    service = InThread(here.settings)
    try:
        until(lambda: here.state()[0] >= 500)
        for cover in world.missing:
            here.put_sidecar(*cover)
        world.missing = frozenset()

        def none_waits() -> bool:
            # It looks again when the partition has moved on since its last checkpoint, which may come at any moment.
            here.send(world.values(30))
            time.sleep(2)
            found = Checkpoints(here.store).newest(0)
            return found is not None and found[0] > len(values) and not len(found[1]["pending.winner"])

        until(none_waits, 200)
    finally:
        service.end()
    found = Checkpoints(here.store).newest(0)
    assert found is not None
    _, tensors, meta = found
    assert len(tensors["pending.winner"]) == 0
    # Every couple was learned from, or is in the queue: none was skipped.
    waiting = len(tensors["queue.winner"]) + len(tensors["outgoing.winners"])
    assert meta["counts"]["couples"] == 32 * meta["sequence"] + waiting


def test_a_learner_whose_checkpoint_is_taken_stops(platform: Callable[..., Platform]) -> None:
    world = TasteWorld(people_count=60, items=6)
    here = platform(world, checkpoint_events=200)
    here.send(world.values(150))
    service = InThread(here.settings)
    until(lambda: here.state()[0] >= 0)
    Checkpoints(here.store, "rival").write(0, 200, *of_learner(world.learner()))
    here.send(world.values(150))
    service.thread.join(120)
    assert service.code == 1
    left = Checkpoints(here.store).newest(0)
    assert left is not None
    assert (left[0], left[2]["writer"]) == (200, "rival")


def test_partitions_move_between_learners_and_nothing_is_lost(platform: Callable[..., Platform]) -> None:
    worlds = [TasteWorld(seed=seed, people_count=60, items=6) for seed in range(4)]
    here = platform(worlds[0], release_pairs=1_000_000, checkpoint_events=200)
    for world in worlds[1:]:  # other pictures and clicks, the same people and covers
        world.vectors, world.covers_seen, world.seed = worlds[0].vectors, worlds[0].covers_seen, worlds[0].seed
    sent: list[list[bytes]] = [[], [], [], []]

    def go_on(pages: int) -> None:
        for partition, world in enumerate(worlds):
            values = world.values(pages)
            sent[partition] += values
            here.send(values, partition)

    def shared_among(learners: int) -> bool:
        """Whether each of so many has written a state of its own."""
        go_on(100)
        time.sleep(1)
        found = [Checkpoints(here.store).newest(partition) for partition in range(4)]
        return len({each[2]["writer"] for each in found if each is not None}) == learners

    go_on(300)
    first = InThread(here.settings)
    until(lambda: shared_among(1))
    second = InThread(here.settings)
    until(lambda: shared_among(2))
    assert first.end() == 0
    until(lambda: shared_among(1))
    assert second.end() == 0
    for partition, values in enumerate(sent):
        offset, found = here.state(partition)
        assert found == fingerprint(straight(worlds[partition], values[:offset], partition))


@pytest.mark.slow
def test_a_learner_that_was_frozen_leaves_what_is_another_ones(
    platform: Callable[..., Platform], light_zygote: Zygote
) -> None:
    """It would write down what it knew when its session ended, over its successor's head."""
    world = TasteWorld(people_count=60, items=6)
    here = platform(world, release_pairs=1_000_000, checkpoint_events=200)
    values = world.values(900)
    here.send(values[:350])
    frozen = here.process(light_zygote)
    with frozen.running():
        until(lambda: here.state()[0] >= 200)
        time.sleep(1)  # it has read beyond its checkpoint
        os.kill(frozen.pid, signal.SIGSTOP)
        successor = InThread(here.settings)
        try:
            last = here.send(values[350:])
            until(lambda: here.state()[0] >= last - 200)
            os.kill(frozen.pid, signal.SIGCONT)
            until(lambda: "partition 0 is lost" in here.said() and "trainer's partition is lost" in here.said())
            assert not here.store.exists(f"state/preferences/0/{350:020d}")
        finally:
            assert successor.end() == 0
        assert frozen.terminate() == 0
    offset, state = here.state()
    assert state == fingerprint(straight(world, values[:offset]))


def test_an_erased_person_leaves_the_learners_state_and_late_events_do_not_bring_them_back(
    platform: Callable[..., Platform],
) -> None:
    world = TasteWorld(people_count=40, items=6)
    here = platform(world, release_pairs=1_000_000, checkpoint_events=200)
    here.settings = here.settings.model_copy(update={"erasure": Erasure(settle_seconds=0)})
    values = world.values(1200)
    here.send(values)
    name = world.user(7)

    def naming() -> list[str]:
        keys = list(here.store.list("state/preferences/"))
        stored = [(key, here.store.get(key)) for key in keys]
        return [key for key, each in stored if each is not None and f'"{name}"'.encode() in each.data]

    service = InThread(here.settings)
    try:
        until(lambda: here.state()[0] >= 800 and bool(naming()))
        receipt = receipts(*here.producer.send_event(UserErasure(user_id=name)).result(60))[-1]
        assert ".preferences." in receipt
        until(lambda: here.store.exists(receipt))
        assert naming() == []
        here.send([value for value in values if f'"{name}"'.encode() in value] + world.values(600))
        end = here.state()[0] + 200
        until(lambda: here.state()[0] >= end)
        assert naming() == []
    finally:
        assert service.end() == 0
    assert naming() == []
    found = Checkpoints(here.store).newest(0)
    assert found is not None
    assert found[2]["counts"]["erased"] > 10
