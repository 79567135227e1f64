"""The learner's edges on real stores: checkpoints in S3, sidecars, people and pushes in Feast, deliveries to Kafka."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from bench.taste_world import SPACE, TasteWorld, columns
from icg.preference import Head
from tests.waiting import until
from workers.events import DEAD_LETTERS
from workers.exceptions import Fault, MessagingFault, Stopped
from workers.features import Features
from workers.messaging import Producer
from workers.preferences.checkpoint import KEPT, BadState, Checkpoints, Superseded, fingerprint, of_learner, to_learner
from workers.preferences.learner import Learner, OtherSpace
from workers.preferences.outbox import Outbox
from workers.preferences.propensity import Weights
from workers.preferences.push import Pusher
from workers.preferences.sources import Stores
from workers.preferences.tastes import Limits
from workers.records import sidecar_key
from workers.settings import Feast, Kafka
from workers.storage import ObjectStore

LIMITS = {"horizon": 600_000_000, "most": 2_000_000, "shown": 10**6, "limits": Limits(0.05, 0.5, 10**6), "rate": 1e6}


@pytest.fixture
def features(feast_repo: Feast) -> Iterator[Features]:
    features = Features(feast_repo)
    yield features
    features.close()


@pytest.fixture
def stores(store: ObjectStore, features: Features) -> Iterator[Stores]:
    stores = Stores(store, features, threading.Event())
    yield stores
    stores.close()


def learned(world: TasteWorld) -> Learner:
    learner = world.learner()
    batch = columns(world.values(800))
    learner.take(batch, Weights.even(len(batch)), world)
    return learner


def test_a_checkpoint_comes_back_as_it_went(store: ObjectStore) -> None:
    learner = learned(TasteWorld())
    Checkpoints(store).write(3, learner.offset, *of_learner(learner))
    found = Checkpoints(store).newest(3)
    assert found is not None
    offset, tensors, meta = found
    assert offset == learner.offset
    assert fingerprint(to_learner(tensors, meta, learner.head, **LIMITS)) == fingerprint(learner)
    assert Checkpoints(store).newest(4) is None


def test_a_person_is_forgotten_once_every_partition_has_said_so(store: ObjectStore) -> None:
    checkpoints, learner = Checkpoints(store), learned(TasteWorld())
    for partition in (0, 12):
        checkpoints.write(partition, 100, *of_learner(learner))
    checkpoints.write("trainer", 0, *of_learner(learner))  # has no names
    assert not checkpoints.without("ann")
    checkpoints.forgot(0, frozenset({"ann"}))
    assert not checkpoints.without("ann")
    checkpoints.forgot(12, frozenset({"ann", "bob"}))
    assert checkpoints.without("ann")
    assert not checkpoints.without("bob")


def test_of_two_writers_the_second_is_told(store: ObjectStore) -> None:
    learner = learned(TasteWorld())
    ours, theirs = Checkpoints(store), Checkpoints(store)
    ours.write(0, 100, *of_learner(learner))
    ours.write(0, 100, *of_learner(learner))  # our own retry, the first of which was done
    with pytest.raises(Superseded, match="another learner"):
        theirs.write(0, 100, *of_learner(learner))


def test_the_newest_are_kept_and_one_that_is_damaged_is_passed_over(store: ObjectStore) -> None:
    checkpoints = Checkpoints(store)
    state = of_learner(learned(TasteWorld()))
    for offset in (9, 10, 200, 1000, 3000):
        checkpoints.write(0, offset, *state)
    keys = list(store.list("state/preferences/0/"))
    assert [int(key.rpartition("/")[2]) for key in keys] == [200, 1000, 3000][-KEPT:]
    store.put_new(f"state/preferences/0/{4000:020d}", b"\x08\0\0\0\0\0\0\0{}      ", "application/octet-stream")
    store.put_new(f"state/preferences/0/{5000:020d}", b"", "application/octet-stream")
    found = checkpoints.newest(0)
    assert found is not None
    assert found[0] == 3000


def test_a_checkpoint_of_another_space_or_with_less_in_it_is_refused() -> None:
    learner = learned(TasteWorld())
    tensors, meta = of_learner(learner)
    with pytest.raises(BadState, match="space"):
        to_learner(tensors, meta, Head.start("f" * 64, 64), **LIMITS)
    with pytest.raises(BadState):
        to_learner(
            {name: each for name, each in tensors.items() if name != "tastes.base"}, meta, learner.head, **LIMITS
        )


def test_embeddings_are_read_from_sidecars(store: ObjectStore, stores: Stores) -> None:
    world = TasteWorld(items=3)
    wanted = [(world.item(item), world.cover(item, number)) for item, number in ((0, 0), (1, 0), (2, 0), (2, 1))]
    first, other = world.sidecar(0, 0), world.sidecar(1, 0).model_copy(update={"space": "f" * 64})
    for sidecar in (first, other):
        store.put_new(sidecar_key(sidecar.item_id, sidecar.cover_id), sidecar.encode(), "application/json")
    store.put_new(sidecar_key(*wanted[3]), b"{}", "application/json")
    found = stores.covers(wanted, SPACE)
    assert np.array_equal(found[0], world.covers_seen[0, 0])
    assert isinstance(found[1], OtherSpace)
    assert found[2] is None
    assert isinstance(found[3], OtherSpace)  # no sidecar, and it never will be one
    late = world.sidecar(2, 0)
    store.put_new(sidecar_key(late.item_id, late.cover_id), late.encode(), "application/json")
    store.delete(sidecar_key(*wanted[0]))  # cached
    found = stores.covers(wanted, SPACE)
    assert np.array_equal(found[0], world.covers_seen[0, 0])
    assert np.array_equal(found[2], world.covers_seen[2, 0])


def test_people_have_their_own_vector_or_their_segments_or_none(features: Features, stores: Stores) -> None:
    vectors = TasteWorld().vectors[:4].tolist()
    features.push(
        "user_embedding",
        [
            {"user_id": "ann", "embedding": vectors[0], "space": SPACE},
            {"user_id": "bob", "embedding": vectors[1], "space": "f" * 64},
            {"user_id": "cat", "embedding": [1.0], "space": SPACE},
        ],
    )
    features.push("user_segment", [{"user_id": user, "segment_id": "s1"} for user in ("ann", "bob", "dan")])
    features.push("user_segment", [{"user_id": "eve", "segment_id": "s2"}, {"user_id": "cat", "segment_id": "s3"}])
    features.push(
        "segment_profile",
        [
            {"segment_id": "s1", "vector": vectors[2], "space": SPACE},
            {"segment_id": "s2", "vector": vectors[3], "space": "f" * 64},
        ],
    )
    found = stores.people(["ann", "bob", "cat", "dan", "eve", "fay"], SPACE, 64)
    nothing = [0.0] * 64
    wanted = [vectors[0], vectors[2], nothing, vectors[2], nothing, nothing]
    assert np.array_equal(found, np.array(wanted, np.float32))


def test_pushes_are_coalesced_and_what_is_not_in_feast_is_known(features: Features) -> None:
    pusher = Pusher(features, 1.0)
    for number in range(50):
        pusher.offer(
            "user_taste", {"ann": {"residual": np.full(4, number, np.float32), "space": SPACE, "pairs": number}}
        )
    pusher.offer("user_history", {"ann": {"liked_items": ["i"], "liked_covers": ["c"]}})
    assert pusher.waiting("user_taste") == {"ann"}
    pusher.start()
    pusher.close()
    assert pusher.waiting("user_taste") == set()
    names = ["user_taste:residual", "user_taste:pairs", "user_history:liked_items"]
    row = features.read(names, [{"user_id": "ann"}])[0]
    assert (row["residual"], row["pairs"], row["liked_items"]) == ([49.0] * 4, 49, ["i"])


def test_what_is_somebody_elses_is_not_pushed_when_feast_comes_back(feast_repo: Feast) -> None:
    """An old taste arrived after the new owner's, and stayed until the person did something again."""
    features, faults = Features(feast_repo, tries=1), list[Fault]()
    pusher = Pusher(features, 0.01, faults.append)
    pusher.start()
    file = sqlite3.connect(feast_repo.repo / "data" / "online_store.db", isolation_level=None)
    [table] = [name for (name,) in file.execute("SELECT name FROM sqlite_master") if name.endswith("_user_taste")]
    file.execute(f"ALTER TABLE {table} RENAME TO away")
    row = {"residual": np.ones(4, np.float32), "space": SPACE, "pairs": 1}
    pusher.offer("user_taste", {"ann": row, "bob": row})
    until(lambda: faults)
    pusher.offer("user_taste", {"cat": row, "dan": row})
    pusher.settle(0.05)
    assert pusher.waiting("user_taste") == {"ann", "bob", "cat", "dan"}
    pusher.drop({"ann", "cat"})
    tries = len(faults)
    until(lambda: len(faults) > tries)  # the attempt that was under way
    file.execute(f"ALTER TABLE away RENAME TO {table}")
    pusher.settle(60)
    assert pusher.waiting("user_taste") == set()
    pusher.close()
    found = features.read(["user_taste:pairs"], [{"user_id": user} for user in ("ann", "bob", "cat", "dan")])
    assert [each["pairs"] for each in found] == [None, 1, None, 1]
    features.close()


def test_an_outbox_sends_again_what_failed_and_settles_when_all_is_there(kafka: Kafka) -> None:
    producer = Producer(kafka, "outbox-test")
    outbox = Outbox(threading.Event())
    tries: list[int] = []

    def first_fails() -> Future[tuple[int, int]]:
        tries.append(1)
        if len(tries) > 1:
            return producer.send(DEAD_LETTERS, b"x", "k")
        failed: Future[tuple[int, int]] = Future()
        failed.set_exception(MessagingFault("the old producer is gone"))
        return failed

    outbox.send(first_fails)
    outbox.settle()
    assert len(tries) == 2
    outbox.settle()
    assert len(tries) == 2
    producer.close(1)


def test_an_outbox_that_is_told_to_stop_does_not_say_done() -> None:
    stop = threading.Event()
    outbox = Outbox(stop)
    never: Future[tuple[int, int]] = Future()
    outbox.send(lambda: never)
    stop.set()
    with pytest.raises(Stopped):
        outbox.settle()
