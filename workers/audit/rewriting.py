"""Other files in the place of a table's: small ones merged, a person's rows left out. Safe beside other workers.

delta-rs (1.6.6) does both, but two workers that merge the same files at the same moment both succeed, and every row is
there twice; and after its delete a column of texts has two types, by which pyarrow cannot search any more. So the
commit is made here, by the protocol of Delta's log: a file of the next version, written only if there is none. Who is
late looks at what came in between: appends do no harm, anything else ends the attempt.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from numpy.typing import NDArray

from workers.audit.layouts import Layout
from workers.exceptions import Conflict, StorageFault
from workers.storage import ObjectStore

TARGET_BYTES = 64 * 1024 * 1024
"""Files are merged up to this size; half of it and more no longer counts as small."""

_LONGEST = 128
"""Characters of a text in the statistics: an id's. A column with a longer one is searched in the file itself."""

Action = dict[str, Any]


def small_files(table: DeltaTable) -> dict[date, list[tuple[str, int]]]:
    """Path in the table and bytes of each, by day."""
    found: dict[date, list[tuple[str, int]]] = {}
    for day, path, size in _files(table):
        if size < TARGET_BYTES / 2:
            found.setdefault(day, []).append((path, size))
    return found


def _files(table: DeltaTable) -> Iterator[tuple[date, str, int]]:
    actions = pa.table(table.get_add_actions(flatten=True)).select(["partition.day", "path", "size_bytes"]).to_pylist()
    for each in actions:
        day = each["partition.day"]
        yield day if isinstance(day, date) else date.fromisoformat(day), each["path"], each["size_bytes"]


def merge(table: DeltaTable, layout: Layout, store: ObjectStore, day: date, files: Sequence[tuple[str, int]]) -> bool:
    """Put larger files in the place of small ones, all of one day, in one commit.

    Args:
        table: whose version is the one that `files` were listed in.

    Returns:
        False where there is nothing to merge, or somebody else's commit came in between: the files may be others now.

    Raises:
        StorageFault: perhaps merged, perhaps not. Both is well.
    """
    actions: list[Action] = []
    for group in _groups(files):
        rows = pa.concat_tables(_read(store, layout, path) for path, _ in group)
        actions += [_remove(path, size, day, False) for path, size in group]
        actions.append(_write(store, layout, rows, day, False))
    return bool(actions) and _commit(table, layout, store, "OPTIMIZE", actions)


def leave_out(table: DeltaTable, layout: Layout, store: ObjectStore, user_key: str) -> int | None:
    """Write every file anew that has rows of a person, without them, in one commit that does not name the person.

    Returns:
        How many rows there were; None where somebody else's commit came in between: again, with the table as it is now.

    Raises:
        StorageFault: perhaps done, perhaps not: again.
    """
    actions: list[Action] = []
    gone = 0
    # One column of each file, and no filter of the dataset's, which fails on a file that delta-rs wrote in a delete.
    fragments = {each.path: each for each in table.to_pyarrow_dataset().get_fragments()}
    for day, path, size in _files(table):
        if not _of_person(fragments[unquote(path)].to_table(columns=["user_key"]), user_key).any():
            continue
        rows = _read(store, layout, path)
        theirs = _of_person(rows, user_key)
        gone += int(theirs.sum())
        actions.append(_remove(path, size, day, True))
        if not theirs.all():
            actions.append(_write(store, layout, rows.filter(pa.array(~theirs)), day, True))
    if not actions:
        return 0
    return gone if _commit(table, layout, store, "DELETE", actions) else None


def _of_person(rows: pa.Table, user_key: str) -> NDArray[np.bool_]:
    keys = rows["user_key"].cast(pa.string())
    found: NDArray[np.bool_] = pc.equal(keys, user_key).fill_null(False).to_numpy()
    return found


def _groups(files: Sequence[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Of about `TARGET_BYTES` each; a single file is left alone."""
    group: list[tuple[str, int]] = []
    total = 0
    for each in files:
        if group and total + each[1] > TARGET_BYTES:
            if len(group) > 1:
                yield group
            group, total = [], 0
        group.append(each)
        total += each[1]
    if len(group) > 1:
        yield group


def _read(store: ObjectStore, layout: Layout, path: str) -> pa.Table:
    """A file's rows in the layout's columns, but for the day, which is in the path.

    Older files lack the younger columns, and delta-rs writes other text types after a delete.
    """
    stored = store.get(f"{_folder(layout)}/{unquote(path)}")  # the log has paths as in an address
    if stored is None:
        raise StorageFault(f"{_folder(layout)}/{path} is gone: somebody else wrote it anew")
    rows = pq.read_table(pa.BufferReader(stored.data))
    there = set(rows.column_names)
    if unknown := there - set(layout.schema.names):
        raise StorageFault(f"{_folder(layout)}: too old a worker for its columns {', '.join(sorted(unknown))}")
    columns = [field for field in layout.schema if field.name != "day"]
    values = [
        rows[field.name].cast(field.type) if field.name in there else pa.nulls(len(rows), field.type)
        for field in columns
    ]
    return pa.table(values, schema=pa.schema(columns))


def _write(store: ObjectStore, layout: Layout, rows: pa.Table, day: date, changes: bool) -> Action:
    """Store a file, and return what says so to the log."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    data = bytes(sink.getvalue())
    path = f"day={day.isoformat()}/part-{uuid.uuid4()}.zstd.parquet"
    store.put_new(f"{_folder(layout)}/{path}", data, "application/vnd.apache.parquet")
    return {
        "add": {
            "path": path,
            "partitionValues": {"day": day.isoformat()},
            "size": len(data),
            "modificationTime": _now(),
            "dataChange": changes,
            "stats": json.dumps(_statistics(rows, layout)),
        }
    }


def _statistics(data: pa.Table, layout: Layout) -> dict[str, Any]:
    """Of the columns that may have some (`Layout.indexed`): whole numbers and texts, which JSON writes without loss."""
    lowest: dict[str, Any] = {}
    highest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for name in layout.indexed:
        kind = data.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind)):
            continue
        nulls[name] = data[name].null_count
        ends = pc.min_max(data[name]).as_py()
        if ends["min"] is None or max(len(str(end)) for end in ends.values()) > _LONGEST:
            continue
        lowest[name], highest[name] = ends["min"], ends["max"]
    return {"numRecords": data.num_rows, "minValues": lowest, "maxValues": highest, "nullCount": nulls}


# --- Delta's log: https://github.com/delta-io/delta/blob/master/PROTOCOL.md -------------------------------------------


def _folder(layout: Layout) -> str:
    return f"audit/{layout.topic}"


def _now() -> int:
    return int(time.time() * 1000)


def _remove(path: str, size: int, day: date, changes: bool) -> Action:
    return {
        "remove": {
            "path": path,
            "dataChange": changes,
            "deletionTimestamp": _now(),
            "extendedFileMetadata": True,
            "partitionValues": {"day": day.isoformat()},
            "size": size,
        }
    }


def _commit(table: DeltaTable, layout: Layout, store: ObjectStore, operation: str, actions: Sequence[Action]) -> bool:
    """Make these the next version after the table's, or after appends that followed it. False where more did.

    Then no log knows the files that were written, which may hold what somebody else is erasing: they go.
    """
    info = {"commitInfo": {"timestamp": _now(), "operation": operation, "operationParameters": {}}}
    data = "".join(json.dumps(action) + "\n" for action in (info, *actions)).encode()
    version = table.version()
    while True:
        version += 1
        key = f"{_folder(layout)}/_delta_log/{version:020d}.json"
        try:
            store.put_if(key, data, None)
            done = _applied(table, actions)
            break
        except Conflict:
            theirs = store.get(key)
            if theirs is None or not _only_adds(theirs.data):
                done = False
                break
    if not done:
        for action in actions:
            if "add" in action:
                store.delete(f"{_folder(layout)}/{action['add']['path']}")
    return done


def _applied(table: DeltaTable, actions: Sequence[Action]) -> bool:
    """Whether readers see it. Who stood still for long may have written a version that was swept away meanwhile."""
    table.update_incremental()
    there = {path for _, path, _ in _files(table)}
    return there.isdisjoint(action["remove"]["path"] for action in actions if "remove" in action)


def _only_adds(commit: bytes) -> bool:
    """Whether files of rows were added and nothing else was done: then nothing that was merged is stale."""
    actions = [json.loads(line) for line in commit.splitlines() if line]
    return all(action.keys() <= {"add", "txn", "commitInfo"} for action in actions) and all(
        action["add"]["dataChange"] for action in actions if "add" in action
    )
