"""The audit tables in S3: each message once, whatever is repeated; compaction; nobody's id in any file."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest

from workers.audit.delta import AuditTable
from workers.audit.layouts import LAYOUTS
from workers.audit.pseudonyms import Pseudonyms
from workers.audit.rewriting import merge, small_files
from workers.audit.sink import Sink
from workers.events import BehaviorKind, Event, ItemPublish, UserBehavior, headers_for
from workers.exceptions import StorageFault
from workers.messaging import Message
from workers.settings import S3, Audit, Settings
from workers.storage import ObjectStore, retrying
from workers.tables import open_table

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def message(event: Event, partition: int, offset: int, time: datetime = NOON) -> Message:
    key = event.key()
    stamp = int(time.timestamp() * 1000)
    return Message(
        event.topic,
        partition,
        offset,
        key.encode() if key else None,
        event.encode(),
        headers_for(event, f"{event.topic}-{partition}-{offset}", "/test"),
        stamp,
    )


def publishes(partition: int, first: int, count: int, **where: datetime) -> list[Message]:
    return [
        message(ItemPublish(item_id=f"i{n}", item_version=1, title=f"Title {n}"), partition, n, **where)
        for n in range(first, first + count)
    ]


def sink(s3: S3, **audit: int) -> Sink:
    return Sink(Settings(s3=s3, audit=Audit(**audit)))  # type: ignore[arg-type]


def offsets(s3: S3, topic: str = "item-publish") -> list[tuple[int, int]]:
    table = open_table(s3, topic)
    assert table is not None
    rows = table.to_pyarrow_table(columns=["kafka_partition", "kafka_offset"]).to_pylist()
    return sorted((row["kafka_partition"], row["kafka_offset"]) for row in rows)


def test_what_is_repeated_is_appended_once(s3: S3, store: ObjectStore) -> None:
    first = sink(s3)
    first.take(publishes(0, 0, 10) + publishes(1, 100, 5))
    assert first.flush() == {"item-publish": 15}
    assert first.take_offsets() == {("item-publish", 0): 10, ("item-publish", 1): 105}

    # A worker that was killed before it committed to Kafka: the next one reads all of it again, and more.
    second = sink(s3)
    second.take(publishes(0, 0, 14) + publishes(1, 100, 5))
    assert second.flush() == {"item-publish": 4}
    assert offsets(s3) == [(0, n) for n in range(14)] + [(1, n) for n in range(100, 105)]


def test_two_workers_that_both_think_they_own_a_partition(s3: S3, store: ObjectStore) -> None:
    one, two = sink(s3), sink(s3)
    one.take(publishes(0, 0, 5))
    one.flush()
    two.take(publishes(0, 0, 5))
    two.flush()  # has opened the table now, at the same version as `one`
    table = AuditTable(LAYOUTS[0], s3)
    stale = [("item-publish", row) for each in publishes(0, 5, 5) for row in LAYOUTS[0].rows(each, two._people)]
    assert table.append(stale[:1]) == 1
    # `one` commits behind the back of `table`, between its look at the offsets and its own commit.
    one.take(publishes(0, 6, 4))
    behind = table._fresh

    def late() -> object:
        fresh = behind()
        one.flush()
        return fresh

    table._fresh = late  # type: ignore[method-assign,assignment]
    with pytest.raises(StorageFault, match="oncurrent"):
        table.append(stale)
    del table._fresh  # type: ignore[method-assign]
    assert table.append(stale) == 0
    assert offsets(s3) == [(0, n) for n in range(10)]


def test_a_bad_message_is_a_row_and_stops_nothing(s3: S3, store: ObjectStore) -> None:
    stamp = int(NOON.timestamp() * 1000)
    secret = b'{"title": "no id", "note": "s3cr3t"}'
    huge = json.dumps({"item_id": "i", "segments": ["s"], "release": 2**80, "time": NOON.isoformat()}).encode()
    # The schema sets no upper bound to a cover-ready's generation; its column does.
    ended = {"item_id": "i1", "item_version": 1, "action": "ready", "outcome": "drawn", "release": 1}
    source = {"topic": "item-publish", "partition": 0, "offset": 0}
    overflow = json.dumps({**ended, "source": source, "generation": 2**80, "time": NOON.isoformat()}).encode()
    fits = json.dumps({**ended, "source": source, "generation": 2, "time": NOON.isoformat()}).encode()
    messages = [
        *publishes(0, 0, 3),
        Message("item-publish", 0, 3, b"k", secret, {}, stamp),
        *publishes(0, 4, 2),
        Message("item-refresh", 0, 0, b"i", huge, {}, stamp),
        Message("cover-ready", 0, 0, b"i1", overflow, {}, stamp),
        Message("cover-ready", 0, 1, b"i1", fits, {}, stamp),
    ]
    for _ in range(2):  # the second time is a replay
        audit = sink(s3)
        audit.take(messages)
        audit.flush()
    assert offsets(s3) == [(0, n) for n in (0, 1, 2, 4, 5)]
    assert offsets(s3, "cover-ready") == [(0, 1)]
    table = open_table(s3, "unreadable")
    assert table is not None
    rows = sorted(table.to_pyarrow_table().to_pylist(), key=lambda row: row["topic"])
    assert [(row["topic"], row["kafka_offset"], row["bytes"]) for row in rows] == [
        ("cover-ready", 0, len(overflow)),
        ("item-publish", 3, len(secret)),
        ("item-refresh", 0, len(huge)),
    ]
    assert "column" in rows[0]["reason"]
    assert "item_id" in rows[1]["reason"]
    assert "release" in rows[2]["reason"]


def test_a_topic_that_was_made_anew_is_not_taken_for_a_replay(s3: S3, store: ObjectStore) -> None:
    audit = sink(s3)
    audit.take(publishes(0, 0, 5))
    audit.flush()
    other = sink(s3)
    other.take(publishes(0, 0, 3, time=NOON + timedelta(hours=1)))
    with pytest.raises(StorageFault, match="made anew"):
        other.flush()
    assert len(offsets(s3)) == 5


def test_a_partition_that_is_lost_is_forgotten(s3: S3, store: ObjectStore) -> None:
    audit = sink(s3)
    audit.take(publishes(0, 0, 3) + publishes(1, 0, 2))
    audit.drop({("item-publish", 0)})
    assert audit.flush() == {"item-publish": 2}
    assert audit.take_offsets() == {("item-publish", 1): 2}
    audit.take(publishes(2, 0, 1))
    audit.drop({("item-publish", 2)})
    assert (audit.messages, audit.age) == (0, 0.0)


def test_compaction_keeps_every_row_and_a_days_files_few(s3: S3, store: ObjectStore) -> None:
    audit = sink(s3, compact_files=4)
    for n in range(7):
        audit.take(publishes(0, 10 * n, 10))
        if n == 0:
            audit.take(publishes(1, 0, 1, time=NOON - timedelta(days=1)))
        audit.flush()
    done = audit.compact(["item-publish"])
    assert done == {"item-publish": [NOON.date()]}
    table = open_table(s3, "item-publish")
    assert table is not None
    assert sorted(uri.split("/")[-2] for uri in table.file_uris()) == ["day=2026-11-20", "day=2026-11-21"]
    assert offsets(s3) == [(0, n) for n in range(70)] + [(1, 0)]
    # A replay is still seen after it, and a reader who opened the table before still finds its files for an hour.
    audit.take(publishes(0, 0, 70))
    assert audit.flush() == {"item-publish": 0}
    assert sum(1 for key in store.list("audit/item-publish/day=2026-11-21/")) == 8


def test_workers_that_compact_at_the_same_moment_double_no_row(s3: S3, store: ObjectStore) -> None:
    """delta-rs lets both commit. An hour of faults found each row four times."""
    workers = [sink(s3, compact_files=2) for _ in range(3)]
    beside = sink(s3)
    merged = 0
    for turn in range(4):
        for n, worker in enumerate(workers * 2):
            worker.take(publishes(n % 3, 100 * turn + 10 * n, 10))
            worker.flush()
        together = threading.Barrier(4)

        def compact(worker: Sink, together: threading.Barrier = together) -> int:
            together.wait()
            return len(worker.compact(["item-publish"]))

        def append(turn: int = turn, together: threading.Barrier = together) -> int:
            together.wait()
            for n in range(3):
                beside.take(publishes(3, 3 * turn + n, 1))
                beside.flush()
            return 0

        with ThreadPoolExecutor(4) as threads:
            tasks = [*(threads.submit(compact, worker) for worker in workers), threads.submit(append)]
            merged += sum(task.result() for task in tasks)
    expected = [(n % 3, 100 * turn + 10 * n + k) for turn in range(4) for n in range(6) for k in range(10)]
    assert offsets(s3) == sorted(expected + [(3, n) for n in range(12)])
    assert merged >= 4  # somebody always gets through
    table = open_table(s3, "item-publish")
    assert table is not None
    assert len(table.file_uris()) < 24


def test_a_version_that_was_swept_away_is_not_taken_for_the_next_one(s3: S3, store: ObjectStore) -> None:
    """A worker that stood still while others went on, made a checkpoint and cleaned the log."""
    audit = sink(s3)
    for n in range(3):
        audit.take(publishes(0, n, 1))
        audit.flush()
    late = open_table(s3, "item-publish")
    assert late is not None
    for n in range(3, 6):
        audit.take(publishes(0, n, 1))
        audit.flush()
    newest = open_table(s3, "item-publish")
    assert newest is not None
    newest.create_checkpoint()
    for version in range(newest.version()):
        store.delete(f"audit/item-publish/_delta_log/{version:020d}.json")
    layout = next(each for each in LAYOUTS if each.topic == "item-publish")
    [(day, files)] = small_files(late).items()
    assert not merge(late, layout, store, day, files)
    assert sum(1 for _ in store.list("audit/item-publish/day=")) == 6, "what it wrote for nothing is gone"
    assert offsets(s3) == [(0, n) for n in range(6)]


def test_an_erasure_and_a_compaction_at_the_same_moment_both_hold(s3: S3, store: ObjectStore) -> None:
    layout = next(each for each in LAYOUTS if each.topic == "user-behavior")
    people, tables = Pseudonyms("key"), [AuditTable(layout, s3) for _ in range(3)]
    gone = people.key("user-0")
    for turn in range(3):
        for n in range(6):
            rows = [
                row for user in range(4) for row in layout.rows(seen(f"user-{user}", 24 * turn + 4 * n + user), people)
            ]
            tables[n % 3].append([("user-behavior", row) for row in rows])
        together = threading.Barrier(3)

        def compact(table: AuditTable, together: threading.Barrier = together) -> None:
            together.wait()
            with contextlib.suppress(StorageFault):  # left for later, as the service does
                table.compact(2)

        def erase(table: AuditTable = tables[2], together: threading.Barrier = together) -> None:
            together.wait()
            retrying(lambda: table.erase(gone), what="erase", stop=threading.Event())

        with ThreadPoolExecutor(3) as threads:
            for task in [*(threads.submit(compact, table) for table in tables[:2]), threads.submit(erase)]:
                task.result()
        assert offsets(s3, "user-behavior") == [(0, n) for n in range(24 * turn + 24) if n % 4]


def seen(user: str, offset: int) -> Message:
    event = UserBehavior(
        event_id=f"e{offset}", user_id=user, item_id="i1", kind=BehaviorKind.IMPRESSION, impression_id=f"p{offset}"
    )
    return message(event, 0, offset)


def test_a_table_gains_the_columns_of_a_newer_version(s3: S3, store: ObjectStore) -> None:
    layout = LAYOUTS[0]
    older = type(layout)(layout.topic, layout.columns[:-1], layout.searched, layout.rows)
    people = Sink(Settings(s3=s3))._people
    rows = [("item-publish", row) for each in publishes(0, 0, 2) for row in layout.rows(each, people)]
    AuditTable(older, s3).append([(topic, {k: v for k, v in row.items() if k != "language"}) for topic, row in rows])
    new = [("item-publish", row) for each in publishes(0, 2, 1) for row in layout.rows(each, people)]
    assert AuditTable(layout, s3).append(new) == 1
    table = open_table(s3, "item-publish")
    assert table is not None
    assert "language" in {field.name for field in table.schema().fields}
    assert len(offsets(s3)) == 3


def test_no_file_of_the_audit_names_a_user(s3: S3, store: ObjectStore) -> None:
    users = [f"reader-{hashlib.sha256(str(n).encode()).hexdigest()[:10]}" for n in range(40)]
    audit = sink(s3, compact_files=2)
    offset = 0
    for _ in range(4):
        for user in users:
            event = UserBehavior(
                event_id=f"{user}.{offset}",
                user_id=user,
                item_id="i1",
                kind=BehaviorKind.IMPRESSION,
                impression_id=f"{user}.{offset}",
                page_id=base64.urlsafe_b64encode(user.encode()).decode().rstrip("="),
                decision="a." + base64.urlsafe_b64encode(f'{{"u":"{user}"}}'.encode()).decode(),
            )
            audit.take([message(event, 0, offset)])
            bad = Message("user-behavior", 1, offset, user.encode(), f'{{"user_id": "{user}"'.encode(), {}, 0)
            letter = Message(
                "dead-letters",
                0,
                offset,
                user.encode(),
                bad.value,
                {"dlq_topic": b"user-behavior", "dlq_reason": f"bad: {user}".encode(), "ce_id": f"{user}.9".encode()},
                0,
            )
            audit.take([bad, letter])
            offset += 1
        audit.flush()
    audit.compact(["user-behavior", "dead-letters", "unreadable"])

    spellings = [
        spelling
        for user in users
        for spelling in (user.encode(), user.encode().hex().encode(), base64.b64encode(user.encode())[:-2])
    ]
    seen = 0
    for key in store.list("audit/"):
        stored = store.get(key)
        assert stored is not None
        for data in unpacked(key, stored.data):
            seen += 1
            found = [spelling for spelling in spellings if spelling in data]
            assert not found, f"{key} holds {found[0]!r}"
    assert seen > 20
    # The scan itself would find one: the same rows, written with the id, are found by it.
    control = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(_one_file(store))).append_column("leak", [[users[0]] * 40]), control)
    assert any(users[0].encode() in data for data in unpacked("leak.parquet", control.getvalue()))


def _one_file(store: ObjectStore) -> bytes:
    keys = [key for key in store.list("audit/user-behavior/day") if key.endswith(".parquet")]
    for key in keys:
        stored = store.get(key)
        assert stored is not None
        if pq.read_metadata(io.BytesIO(stored.data)).num_rows == 40:
            return stored.data
    raise AssertionError("no file of one flush")


def unpacked(key: str, data: bytes) -> list[bytes]:
    """A file's bytes, and what they say once decompressed."""
    if key.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data))
        return [data, repr(pq.read_metadata(io.BytesIO(data)).to_dict()).encode(), repr(table.to_pylist()).encode()]
    if key.endswith(".gz"):
        return [data, gzip.decompress(data)]
    return [data]
