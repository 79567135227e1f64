"""The audit tables as DuckDB views named like the topics, `cover_ready` for `cover-ready`. Nothing is downloaded.

DuckDB reads through Arrow what `deltalake` opened, so neither its `delta` nor its `httpfs` extension is needed.
"""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from workers.audit.layouts import LAYOUTS, UNREADABLE_LAYOUT
from workers.exceptions import UserError
from workers.settings import S3
from workers.tables import open_table

Record = dict[str, Any]

_CONFIG = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    # Names in a query are tables, never variables of this program.
    "python_enable_replacements": "false",
}


class Views:
    """A DuckDB connection over the tables as they are now.

    Raises:
        UserError: there is no table yet.
        StorageFault: S3 does not answer.
    """

    def __init__(self, settings: S3) -> None:
        self._connection = duckdb.connect(config=_CONFIG)
        self._connection.execute("set TimeZone = 'UTC'")
        there = 0
        for layout in (*LAYOUTS, UNREADABLE_LAYOUT):
            table = open_table(settings, layout.topic)
            # A topic that nothing came from yet is an empty table, so that a query over all of them holds.
            data = ds.dataset(layout.schema.empty_table()) if table is None else table.to_pyarrow_dataset()
            self._connection.register(layout.view, data)
            there += table is not None
        if not there:
            raise UserError(
                f"no audit tables in s3://{settings.bucket}/audit/ yet: `icg run audit` makes them as events come"
            )

    def ask(self, query: str, parameters: Record | None = None) -> pa.Table:
        """The rows of one query.

        Raises:
            UserError: what DuckDB has against it, in a line or two.
        """
        try:
            relation = self._connection.sql(query, params=parameters)
            # A statement without an answer (`set …`) gives none.
            return pa.table({}) if relation is None else relation.to_arrow_table()
        except duckdb.Error as error:
            raise UserError(_short(str(error))) from None

    def records(self, query: str, parameters: Record | None = None) -> list[Record]:
        rows: list[Record] = self.ask(query, parameters).to_pylist(maps_as_pydicts="lossy")
        return rows


def _short(message: str) -> str:
    """DuckDB's complaint without the query and the caret under it: the first line, and its suggestion if it has one."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    keep = lines[:1] + [line for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))][:1]
    return "\n".join(line[:300] for line in keep)
