"""Answers as a table for people, JSON for programs, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from datetime import date, datetime
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def show(rows: list[dict[str, Any]], form: Format, columns: list[str] | None = None) -> str:
    """Rows of the same columns, ready to print.

    Args:
        columns: their names, for the case that there are no rows.
    """
    names = columns or list(rows[0] if rows else ())
    if form is Format.JSON:
        return json.dumps(rows, default=_plain, indent=2, ensure_ascii=False)
    if form is Format.CSV:
        return _csv([names, *([_cell(row[name]) for name in names] for row in rows)])
    table = Table(*names) if names else Table()
    for row in rows:
        table.add_row(*(_brief(row[name]) for name in names))
    return _rendered(table) if rows else "no rows"


def show_one(record: dict[str, Any], form: Format) -> str:
    """One nested record: as it is in JSON, otherwise one line a leaf, named by its path."""
    if form is Format.JSON:
        return json.dumps(record, default=_plain, indent=2, ensure_ascii=False)
    leaves = list(_leaves("", record))
    if form is Format.CSV:
        return _csv([["field", "value"], *([name, _cell(value)] for name, value in leaves)])
    table = Table("field", "value", show_header=False)
    for name, value in leaves:
        table.add_row(name, _brief(value))
    return _rendered(table)


def _leaves(path: str, value: Any) -> Any:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves(f"{path}.{name}" if path else str(name), each)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, each in enumerate(value):
            yield from _leaves(f"{path}[{number}]", each)
    else:
        yield path, value


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=_plain, ensure_ascii=False)
    return str(_plain(value)) if not isinstance(value, str) else value


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return _cell(value)


def _csv(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().rstrip("\n")


def _rendered(table: Table) -> str:
    # What came with the data is text: `[red]` and `:x:` are no markup of ours.
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:  # a pipe, a test: as wide as it needs to be, so that no id is cut
        console = Console(width=500, no_color=True, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")
