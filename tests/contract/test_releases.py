"""Releases of trained parts, on every object store and broker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import until
from workers.events import ModelUpdate
from workers.exceptions import BadPart, StorageFault
from workers.following import ReleaseFollower
from workers.messaging import Follower, Producer
from workers.records import RELEASE_KEY, Release, part_prefix, sha256
from workers.releases import CARD, Releases, history_key
from workers.settings import S3, Kafka
from workers.storage import ObjectStore

pytestmark = pytest.mark.real("kafka", "s3")
FILES = {"config.json": b"{}", "unet/weights.safetensors": b"\x00" * 1000}


@pytest.fixture
def objects(bucket: S3) -> ObjectStore:
    return ObjectStore(bucket)


@pytest.fixture
def releases(objects: ObjectStore, tmp_path: Path) -> Releases:
    return Releases(objects, tmp_path / "cache")


@pytest.fixture
def producer(broker: Kafka) -> Iterator[Producer]:
    producer = Producer(broker, "test")
    yield producer
    producer.close()


def test_a_part_is_known_by_its_content(releases: Releases, tmp_path: Path) -> None:
    revision = releases.put_part("adapter", FILES, made_by="test", metrics={"loss": 0.5})
    (tmp_path / "w").write_bytes(FILES["unet/weights.safetensors"])
    again = {"unet/weights.safetensors": tmp_path / "w", "config.json": b"{}"}
    assert releases.put_part("adapter", again, made_by="another") == revision
    assert releases.put_part("adapter", {**FILES, "config.json": b"[]"}) != revision
    assert releases.put_part("adapter", FILES, space="a" * 64) != revision
    card = releases.card("adapter", revision)
    assert (card.made_by, card.metrics) == ("test", {"loss": 0.5})
    assert card.files == {name: sha256(data) for name, data in FILES.items()}


def test_a_part_is_fetched_once_and_whole(releases: Releases, objects: ObjectStore) -> None:
    revision = releases.put_part("adapter", FILES)
    folder = releases.fetch("adapter", revision)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del found[CARD]
    assert found == FILES
    objects.delete(part_prefix("adapter", revision) + "config.json")
    assert releases.fetch("adapter", revision) == folder


def test_a_damaged_cache_is_fetched_again(releases: Releases) -> None:
    revision = releases.put_part("adapter", FILES)
    folder = releases.fetch("adapter", revision)
    (folder / "unet/weights.safetensors").write_bytes(b"\x01" * 1000)
    assert releases.fetch("adapter", revision) == folder
    assert (folder / "unet/weights.safetensors").read_bytes() == FILES["unet/weights.safetensors"]


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_wrong_file_is_refused_and_leaves_nothing(
    releases: Releases, objects: ObjectStore, tmp_path: Path, damage: str
) -> None:
    revision = releases.put_part("adapter", FILES)
    key = part_prefix("adapter", revision) + "config.json"
    objects.delete(key)
    if damage == "changed":
        objects.put_new(key, b"{ }", "application/json")
    with pytest.raises(BadPart, match=r"config\.json"):
        releases.fetch("adapter", revision)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a//b", ".x", "a/.x", "a\\b", "", "card.json"])
def test_a_path_out_of_the_folder_is_refused(releases: Releases, objects: ObjectStore, name: str) -> None:
    with pytest.raises(BadPart, match="no name for a file"):
        releases.put_part("adapter", {name: b"x"})
    # A card that somebody else wrote, consistent in itself.
    from workers.records import ModelCard, revision_of

    files = {name: sha256(b"x")}
    revision = revision_of("adapter", None, files)
    card = ModelCard(part="adapter", revision=revision, files=files)
    objects.put_new(part_prefix("adapter", revision) + CARD, card.encode(), "application/json")
    with pytest.raises(BadPart, match="no name for a file"):
        releases.fetch("adapter", revision)


def test_a_card_of_something_else_is_refused(releases: Releases, objects: ObjectStore) -> None:
    revision = releases.put_part("adapter", FILES)
    other = "0" * 64
    stored = objects.get(part_prefix("adapter", revision) + CARD)
    assert stored is not None
    objects.put_new(part_prefix("adapter", other) + CARD, stored.data, "application/json")
    objects.put_new(part_prefix("adapter", "1" * 64) + CARD, b"not a card", "application/json")
    with pytest.raises(BadPart, match="describes something else"):
        releases.fetch("adapter", other)
    with pytest.raises(BadPart, match="its card is no card"):
        releases.fetch("adapter", "1" * 64)
    with pytest.raises(BadPart, match="no card"):
        releases.fetch("adapter", "2" * 64)
    with pytest.raises(BadPart, match="is no revision"):
        releases.fetch("adapter", "../../secrets")


def test_several_may_fetch_at_once(releases: Releases, objects: ObjectStore, tmp_path: Path) -> None:
    revision = releases.put_part("base", {f"f{n}": bytes([n]) * 50_000 for n in range(8)})
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(Releases(objects, tmp_path / "cache").fetch("base", revision)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4
    assert len(set(folders)) == 1
    assert sorted(p.name for p in folders[0].parent.iterdir()) == [revision]


def test_a_disk_that_cannot_be_written_is_a_fault(objects: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    releases = Releases(objects, tmp_path / "file")
    revision = releases.put_part("adapter", FILES)
    with pytest.raises(StorageFault, match="Not a directory"):
        releases.fetch("adapter", revision)


def test_numbers_grow_and_unchanged_parts_stay(releases: Releases) -> None:
    assert releases.current() is None
    base = releases.put_part("base", {"f": b"1"})
    adapter = releases.put_part("adapter", {"f": b"1"})
    next_adapter = releases.put_part("adapter", {"f": b"2"})
    first = releases.publish({"base": base, "adapter": adapter}, "begin", "base")
    second = releases.publish({"adapter": next_adapter}, "better", "adapter")
    assert (first.number, second.number) == (1, 2)
    assert second.parts == {"base": base, "adapter": next_adapter}
    assert releases.current() == second
    assert releases.release(1) == first


def test_a_rollback_is_a_new_number(releases: Releases) -> None:
    one, two = (releases.put_part("adapter", {"f": c}) for c in (b"1", b"2"))
    releases.publish({"adapter": one}, "one", "adapter")
    releases.publish({"adapter": two}, "two", "adapter")
    back = releases.rollback(1, "two is worse")
    assert (back.number, back.parts, back.reason) == (3, {"adapter": one}, "two is worse")
    assert releases.current() == back
    with pytest.raises(BadPart, match="no release 9"):
        releases.rollback(9, "")


def test_a_release_of_what_is_not_there_is_refused(releases: Releases) -> None:
    with pytest.raises(BadPart, match="no card"):
        releases.publish({"adapter": "0" * 64}, "", "adapter")
    assert releases.current() is None


def test_spaces_are_not_mixed(releases: Releases) -> None:
    old, new = (releases.put_part("space", {"f": c}) for c in (b"old", b"new"))
    adapter = releases.put_part("adapter", {"f": b"a"}, space=old)
    releases.publish({"space": old, "adapter": adapter}, "begin", "space")
    with pytest.raises(BadPart, match="is of space"):
        releases.publish({"space": new}, "a new space alone", "space")
    aligned = releases.put_part("adapter", {"f": b"a"}, space=new)
    assert releases.publish({"space": new, "adapter": aligned}, "aligned", "space").number == 2


def test_of_eight_publishing_at_once_none_is_lost(objects: ObjectStore, tmp_path: Path) -> None:
    releases = Releases(objects, tmp_path)
    revision = releases.put_part("adapter", {"f": b"1"})
    published: list[Release] = []
    threads = [
        threading.Thread(target=lambda: published.append(releases.publish({"adapter": revision}, "race", "adapter")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = sorted(release.number for release in published)
    assert len(set(numbers)) == 8
    current = releases.current()
    assert current is not None
    assert current.number == numbers[-1]
    for release in published:
        assert releases.release(release.number) == release


def test_a_number_taken_by_one_who_died_is_skipped(releases: Releases, objects: ObjectStore) -> None:
    revision = releases.put_part("adapter", {"f": b"1"})
    orphan = Release(number=1, parts={}, reason="its maker died before it was in force")
    objects.put_new(history_key(1), orphan.encode(), "application/json")
    assert releases.publish({"adapter": revision}, "", "adapter").number == 2
    assert releases.release(1) == orphan


def test_a_release_is_announced(objects: ObjectStore, tmp_path: Path, broker: Kafka, producer: Producer) -> None:
    follower = Follower(broker, ModelUpdate.topic, start="latest")
    releases = Releases(objects, tmp_path, producer)
    revision = releases.put_part("adapter", {"f": b"1"})
    releases.publish({"adapter": revision}, "why", "adapter")
    found: list[ModelUpdate] = []
    until(lambda: bool(found.extend(ModelUpdate.decode(m.value) for m in follower.poll(10, 0.2)) or found))
    follower.close()
    assert (found[0].number, found[0].part, found[0].parts) == (1, "adapter", {"adapter": revision})


def test_a_follower_is_told_of_growing_numbers_only(
    objects: ObjectStore, tmp_path: Path, broker: Kafka, producer: Producer
) -> None:
    releases = Releases(objects, tmp_path, producer)
    revision = releases.put_part("adapter", {"f": b"1"})
    releases.publish({"adapter": revision}, "one", "adapter")
    told: list[int] = []
    follower = ReleaseFollower(broker, releases, lambda release: told.append(release.number), look_seconds=3600)
    follower.start()
    try:
        until(lambda: told == [1])
        releases.publish({"adapter": revision}, "two", "adapter")
        until(lambda: told == [1, 2])
        # Lower numbers, the same number, nonsense, and a number that is announced but not true.
        for number in (1, 2, 99):
            producer.send_event(ModelUpdate(number=number, part="adapter", parts={})).result(60)
        producer.send(ModelUpdate.topic, b"nonsense", "adapter").result(60)
        # The truth itself goes back: somebody restored an old copy of the bucket.
        first = objects.get(history_key(1))
        assert first is not None
        objects.update(RELEASE_KEY, lambda _: first.data)
        producer.send_event(ModelUpdate(number=100, part="adapter", parts={})).result(60)
        objects.update(RELEASE_KEY, lambda _: Release(number=3, parts={}).encode())
        producer.send_event(ModelUpdate(number=3, part="adapter", parts={})).result(60)
        until(lambda: 3 in told)
        assert told == [1, 2, 3]
    finally:
        follower.stop()


def test_a_follower_without_announcements_looks_by_itself(objects: ObjectStore, tmp_path: Path, broker: Kafka) -> None:
    releases = Releases(objects, tmp_path)
    revision = releases.put_part("adapter", {"f": b"1"})
    told: list[int] = []
    follower = ReleaseFollower(broker, releases, lambda release: told.append(release.number), look_seconds=0.2)
    follower.start()
    try:
        releases.publish({"adapter": revision}, "one", "adapter")
        until(lambda: told == [1])
    finally:
        follower.stop()


def test_what_the_callback_raises_decides(objects: ObjectStore, tmp_path: Path, broker: Kafka) -> None:
    """A fault is tried again; a part that is bad is not."""
    releases = Releases(objects, tmp_path)
    revision = releases.put_part("adapter", {"f": b"1"})
    told: list[int] = []

    def take(release: Release) -> None:
        told.append(release.number)
        if release.number == 1 and len(told) < 3:
            raise StorageFault("away")
        if release.number == 2:
            raise BadPart("wrong")

    follower = ReleaseFollower(broker, releases, take, look_seconds=0.1)
    follower.start()
    try:
        releases.publish({"adapter": revision}, "one", "adapter")
        until(lambda: told == [1, 1, 1])
        releases.publish({"adapter": revision}, "two", "adapter")
        until(lambda: follower.number == 2)
        releases.publish({"adapter": revision}, "three", "adapter")
        until(lambda: follower.number == 3)
        assert told == [1, 1, 1, 2, 3]
    finally:
        follower.stop()


def test_a_follower_waits_for_a_broker_that_is_not_there(objects: ObjectStore, tmp_path: Path) -> None:
    releases = Releases(objects, tmp_path)
    revision = releases.put_part("adapter", {"f": b"1"})
    told: list[int] = []
    nobody = Kafka(bootstrap_servers="127.0.0.1:9")
    follower = ReleaseFollower(nobody, releases, lambda release: told.append(release.number), look_seconds=0.1)
    releases.publish({"adapter": revision}, "one", "adapter")
    follower.start()
    until(lambda: told == [1])
    follower.stop()


def test_a_revision_is_found_by_its_first_digits(releases: Releases) -> None:
    # Seventeen revisions, sixteen digits: two begin alike.
    made = [releases.put_part("base", {"a.json": f"[{number}]".encode()}) for number in range(17)]
    assert releases.find("base", made[0]) == releases.find("base", made[0][:16]) == made[0]
    assert len(set(made)) == 17
    shared = next(digit for digit in "0123456789abcdef" if sum(one.startswith(digit) for one in made) > 1)
    with pytest.raises(BadPart, match=f"revisions begin with '{shared}'"):
        releases.find("base", shared)
    absent = next(f"{number:04x}" for number in range(99) if not any(one.startswith(f"{number:04x}") for one in made))
    with pytest.raises(BadPart, match=f"no revision begins with '{absent}'"):
        releases.find("base", absent)
    for wrong in ("zz", ""):
        with pytest.raises(BadPart, match=f"'{wrong}' is no revision: 64 hexadecimal digits"):
            releases.find("base", wrong)
