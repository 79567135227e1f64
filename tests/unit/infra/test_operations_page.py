"""docs/operations.md says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.metrics import in_code
from tests.tables import FILE, metrics_table, settings_table, written
from tests.unit.infra.test_compose import variables

ROOT = Path(__file__).resolve().parents[3]


def test_its_tables_are_up_to_date() -> None:
    assert FILE.read_text() == written(FILE.read_text()), "run: python -m tests.tables"


def test_the_tables_have_everything() -> None:
    assert set(re.findall(r"^\| `(\w+)`", settings_table(), re.MULTILINE)) == variables()
    assert metrics_table().count("\n") == len(in_code()) + 1


def test_what_it_names_is_there() -> None:
    text = FILE.read_text()
    paths = set(re.findall(r"`((?:tests|infra|docs|workers)/[\w./-]+)`", text))
    assert len(paths) >= 5
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    tests = set(re.findall(r"`(test_\w+)`", text))
    named = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert tests <= named
