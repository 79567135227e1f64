"""What every object store must do for us."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.exceptions import Conflict, StorageFault
from workers.settings import S3
from workers.storage import ObjectStore

pytestmark = pytest.mark.real("s3")


@pytest.fixture
def bytes_store(bucket: S3) -> ObjectStore:
    return ObjectStore(bucket)


def together(count: int, work: Callable[[int], None]) -> None:
    """Run `work(0)` … `work(count - 1)` in threads that begin at once; raise what any of them raised."""
    gate, errors = threading.Barrier(count), []

    def run(number: int) -> None:
        try:
            gate.wait()
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_what_is_put_is_got(bytes_store: ObjectStore) -> None:
    data = bytes(range(256)) * 1000
    assert bytes_store.get("a/b c+é.bin") is None
    assert bytes_store.put_new("a/b c+é.bin", data, "image/webp")
    stored = bytes_store.get("a/b c+é.bin")
    head = bytes_store.head("a/b c+é.bin")
    assert stored is not None
    assert stored.data == data
    assert head is not None
    assert (head.size, head.etag, head.content_type) == (len(data), stored.etag, "image/webp")


def test_an_object_is_written_once(bytes_store: ObjectStore) -> None:
    assert bytes_store.put_new("k", b"first", "text/plain")
    assert not bytes_store.put_new("k", b"second", "text/plain")
    stored = bytes_store.get("k")
    assert stored is not None
    assert stored.data == b"first"


def test_one_of_eight_writes_a_new_object(bytes_store: ObjectStore) -> None:
    won: list[int] = []
    for round_ in range(5):
        won.clear()

        def write(number: int, key: str = f"race/{round_}") -> None:
            if bytes_store.put_new(key, str(number).encode(), "text/plain"):
                won.append(number)

        together(8, write)
        assert len(won) == 1
        stored = bytes_store.get(f"race/{round_}")
        assert stored is not None
        assert stored.data == str(won[0]).encode()


def test_compare_and_swap(bytes_store: ObjectStore) -> None:
    first = bytes_store.put_if("k", b"1", None)
    with pytest.raises(Conflict):
        bytes_store.put_if("k", b"x", None)
    second = bytes_store.put_if("k", b"2", first)
    with pytest.raises(Conflict):
        bytes_store.put_if("k", b"x", first)
    stored = bytes_store.get("k")
    assert stored is not None
    assert (stored.data, stored.etag) == (b"2", second)


def test_a_swap_of_what_is_gone_is_a_conflict(bytes_store: ObjectStore) -> None:
    etag = bytes_store.put_if("k", b"1", None)
    bytes_store.delete("k")
    with pytest.raises(Conflict):
        bytes_store.put_if("k", b"2", etag)


def test_eight_writers_lose_no_update(bucket: S3) -> None:
    """With clients of their own, as eight processes have; bytes that differ in nothing but the count."""

    def count(_: int) -> None:
        store = ObjectStore(bucket)
        for _ in range(5):
            store.update("counter", lambda data: str(int(data or b"0") + 1).encode())

    together(8, count)
    stored = ObjectStore(bucket).get("counter")
    assert stored is not None
    assert stored.data == b"40"


def test_eight_writers_of_one_client_lose_no_update(bytes_store: ObjectStore) -> None:
    def append(number: int) -> None:
        for step in range(5):
            entry = [number, step]
            bytes_store.update(
                "log", lambda data, entry=entry: json.dumps([*json.loads(data or b"[]"), entry]).encode()
            )

    together(8, append)
    stored = bytes_store.get("log")
    assert stored is not None
    entries = json.loads(stored.data)
    assert sorted(entries) == [[number, step] for number in range(8) for step in range(5)]
    for number in range(8):
        assert [step for writer, step in entries if writer == number] == list(range(5))


def test_update_may_leave_things_as_they_are(bytes_store: ObjectStore) -> None:
    assert bytes_store.update("k", lambda _: None) is None
    assert not bytes_store.exists("k")
    assert bytes_store.update("k", lambda _: b"1") == b"1"
    assert bytes_store.update("k", lambda _: None) == b"1"


def test_delete_is_final_and_repeatable(bytes_store: ObjectStore) -> None:
    bytes_store.put_new("k", b"1", "text/plain")
    bytes_store.delete("k")
    bytes_store.delete("k")
    assert bytes_store.get("k") is None
    assert bytes_store.head("k") is None
    assert not bytes_store.exists("k")


def test_list_goes_over_pages_in_order(bytes_store: ObjectStore) -> None:
    keys = [f"p/{number:04}" for number in range(25)]
    for key in (*reversed(keys), "q/other"):
        bytes_store.put_new(key, b"", "text/plain")
    assert list(bytes_store.list("p/")) == keys
    paged = list(bytes_store.listing("p/", after=keys[2], page=10))
    assert [each.key for each in paged] == keys[3:]
    head = bytes_store.head(keys[3])
    assert head is not None
    assert paged[0].etag == head.etag
    assert list(bytes_store.list("nothing/")) == []


def test_a_presigned_address_gives_the_bytes_and_no_other_objects(bytes_store: ObjectStore) -> None:
    bytes_store.put_new("covers/i/c.webp", b"picture", "image/webp")
    bytes_store.put_new("covers/i/d.webp", b"other", "image/webp")
    address = bytes_store.presign("covers/i/c.webp", 60)
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in address
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert answer.read() == b"picture"
        assert answer.headers["Content-Type"] == "image/webp"


def test_a_presigned_address_uses_the_public_endpoint(bucket: S3) -> None:
    store = ObjectStore(bucket.model_copy(update={"public_endpoint": "https://covers.example.org"}))
    assert store.presign("a").startswith(f"https://covers.example.org/{bucket.bucket}/a?")
    assert store.address("a") == f"s3://{bucket.bucket}/a"


def test_files_go_up_and_come_down_whole(bytes_store: ObjectStore, tmp_path: Path) -> None:
    data = hashlib.shake_128(b"weights").digest(3 * 2**20 + 17)
    (tmp_path / "up").write_bytes(data)
    assert bytes_store.put_new("w", tmp_path / "up", "application/octet-stream")
    assert bytes_store.download("w", tmp_path / "down") == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "down").read_bytes() == data
    assert bytes_store.download("absent", tmp_path / "none") is None


def test_another_bucket_can_be_read(bucket: S3) -> None:
    other = ObjectStore(bucket.model_copy(update={"bucket": f"{bucket.bucket}-2"}))
    other.ensure_bucket()
    other.put_new("k", b"theirs", "text/plain")
    store = ObjectStore(bucket)
    stored = store.get("k", bucket=other.bucket)
    head = store.head("k", bucket=other.bucket)
    assert stored is not None
    assert stored.data == b"theirs"
    assert head is not None
    assert head.size == 6
    assert store.get("k") is None


def test_a_bucket_may_be_ensured_twice_and_its_absence_is_a_fault(bucket: S3) -> None:
    ObjectStore(bucket).ensure_bucket()
    assert ObjectStore(bucket).ping()
    nowhere = ObjectStore(bucket.model_copy(update={"bucket": f"{bucket.bucket}-no"}))
    assert not nowhere.ping()
    with pytest.raises(StorageFault):
        nowhere.get("k")
    with pytest.raises(StorageFault):
        nowhere.put_if("k", b"", None)
    with pytest.raises(StorageFault):
        list(nowhere.list(""))
