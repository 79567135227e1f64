"""One Delta Lake table in S3 that takes each Kafka message once.

An append carries, for each partition in it, the last offset as an application transaction. Delta does not refuse a
repeated transaction by itself, so `append` compares first and drops what is at or below it. The comparison and the
commit go through the same table object: a commit that came in between (another worker that still thinks it owns the
partition) fails ours as a concurrent transaction, and the retry sees its offsets.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import date

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from workers.audit import rewriting
from workers.audit.layouts import UNREADABLE_LAYOUT, Layout, Row
from workers.exceptions import StorageFault
from workers.settings import S3
from workers.storage import ObjectStore
from workers.tables import faults, storage_options, table_uri

log = logging.getLogger(__name__)

_CONFIGURATION = {
    # As-of is asked by columns, so history only has to outlive a reader that is in the middle of a query.
    "delta.logRetentionDuration": "interval 1 day",
    "delta.deletedFileRetentionDuration": "interval 1 hour",
}


def application(topic: str, partition: int) -> str:
    """The application id under which a partition's offsets are kept in a table."""
    return f"icg-audit/{topic}/{partition}"


class AuditTable:
    """The table of one layout. For one thread."""

    def __init__(self, layout: Layout, settings: S3) -> None:
        self.layout = layout
        self._settings = settings
        self._store = ObjectStore(settings)
        self._table: DeltaTable | None = None
        self._same: set[int] = set()

    def append(self, rows: Sequence[tuple[str, Row]]) -> int:
        """Append the rows that the table does not have yet, in one commit.

        Args:
            rows: (topic, row), the offsets of a partition in growing order and without a gap that was not in Kafka.

        Returns:
            How many were new.

        Raises:
            StorageFault: perhaps appended, perhaps not: call again with the same rows, or more.
            pyarrow.ArrowException, OverflowError: a value does not fit its column.
        """
        data = pa.Table.from_pylist([row for _, row in rows], schema=self.layout.schema)
        with faults(f"audit/{self.layout.topic}"):
            table = self._fresh()
            last: dict[str, int] = {}
            for topic, row in rows:
                app = application(topic, row["kafka_partition"])
                last[app] = max(last.get(app, -1), row["kafka_offset"])
            known = {app: self._known(table, app) for app in last}
            new = [row["kafka_offset"] > known[application(topic, row["kafka_partition"])] for topic, row in rows]
            if not all(new) and self.layout is not UNREADABLE_LAYOUT:  # it holds several topics, each has its own table
                self._check_same_topic(table, [row for (_, row), fresh in zip(rows, new, strict=True) if not fresh])
            if not any(new):
                return 0
            data = data.filter(pa.array(new))
            transactions = [Transaction(app, offset) for app, offset in last.items() if offset > known[app]]
            write_deltalake(
                table,
                data,
                mode="append",
                schema_mode="merge",
                commit_properties=CommitProperties(app_transactions=transactions),
            )
            return int(data.num_rows)

    def compact(self, most_files: int) -> list[date]:
        """Merge the small files of each day that has more of them than `most_files`, then drop what is an hour old.

        Returns:
            The days that were compacted.
        """
        with faults(f"compact audit/{self.layout.topic}"):
            crowded = [day for day, files in rewriting.small_files(self._fresh()).items() if len(files) > most_files]
            days: list[date] = []
            for day in sorted(crowded):
                table = self._fresh()
                files = rewriting.small_files(table).get(day, [])
                if not rewriting.merge(table, self.layout, self._store, day, files):
                    log.info("audit/%s of %s is left to the worker that changed it meanwhile", self.layout.topic, day)
                    break
                days.append(day)
            if days:
                table = self._fresh()
                # An hour, and never none: a file that another writer is about to commit must not be swept.
                table.vacuum(retention_hours=1, dry_run=False, enforce_retention_duration=False)
            return days

    def erase(self, user_key: str) -> int:
        """Delete a person's rows, and every file that held them; how many rows there were.

        Files go in two sweeps: those that the log says were removed, at once (a reader in the middle of an old version
        has to ask again; a writer loses nothing, since what it has not committed is in no log), and those of an hour
        ago that no log knows any more.

        Raises:
            StorageFault: also where another commit came in between: call again.
        """
        with faults(f"erase from audit/{self.layout.topic}"):
            gone = rewriting.leave_out(self._fresh(), self.layout, self._store, user_key)
            if gone is None:
                raise StorageFault(f"erase from audit/{self.layout.topic}: another worker wrote the same files anew")
            table = self._fresh()
            table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
            table.vacuum(retention_hours=1, dry_run=False, enforce_retention_duration=False, full=True)
            return gone

    def _fresh(self) -> DeltaTable:
        if self._table is None:
            self._table = DeltaTable.create(
                table_uri(self._settings, self.layout.topic),
                self.layout.schema,
                mode="ignore",
                partition_by=["day"],
                configuration={**_CONFIGURATION, "delta.dataSkippingStatsColumns": ",".join(self.layout.indexed)},
                storage_options=storage_options(self._settings),
            )
        else:
            # Also the cheapest way to find S3 gone: a write that fails half way panics noisily inside delta-rs.
            self._table.update_incremental()
        return self._table

    def _check_same_topic(self, table: DeltaTable, repeated: list[Row]) -> None:
        """Once a partition: what is about to be skipped as a replay must be what the table has at those offsets.

        A topic that was deleted and made again (or another cluster's) begins at 0, and would be skipped silently.
        """
        for partition in {row["kafka_partition"] for row in repeated} - self._same:
            some = [row for row in repeated if row["kafka_partition"] == partition][:100]
            wanted = {row["kafka_offset"]: row["kafka_time"] for row in some}
            where = (ds.field("kafka_partition") == partition) & ds.field("kafka_offset").isin(list(wanted))
            stored = table.to_pyarrow_dataset().to_table(["kafka_offset", "kafka_time"], filter=where).to_pylist()
            if any(row["kafka_time"] != wanted[row["kafka_offset"]] for row in stored):
                raise StorageFault(
                    f"audit/{self.layout.topic} has other messages at offsets of partition {partition}: the topic was "
                    "made anew; move the table away, or use another bucket"
                )
            self._same.add(partition)

    @staticmethod
    def _known(table: DeltaTable, app: str) -> int:
        version = table.transaction_version(app)
        return -1 if version is None else int(version)
