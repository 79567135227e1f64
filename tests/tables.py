"""The tables of docs/operations.md, made from the code: `python -m tests.tables` writes them anew."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from tests.metrics import in_code
from workers.settings import Settings

FILE = Path(__file__).resolve().parents[1] / "docs" / "operations.md"


def settings_table() -> str:
    lines = ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            lines += [_row(f"ICG_{name}_{inner}".upper(), each) for inner, each in section.model_fields.items()]
        else:
            lines.append(_row(str(field.validation_alias or f"ICG_{name}".upper()), field))
    return "\n".join(lines)


def _row(name: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, Path):
        # A path of this machine means nothing elsewhere.
        default = {"icg": "~/.cache/icg", "feature_repo": "feature_repo/"}[default.name]
    shown = "" if default in (None, (), {}) else f"`{default}`"
    return f"| `{name}` | {shown} | {(field.description or '').replace('|', chr(92) + '|')} |"


def metrics_table() -> str:
    lines = ["| metric | labels | |", "|---|---|---|"]
    for metric in in_code():
        name = metric.name + ("_total" if metric.kind == "Counter" else "")
        lines.append(f"| `{name}` | {', '.join(metric.labels)} | {metric.what} |")
    return "\n".join(lines)


TABLES = {"settings": settings_table, "metrics": metrics_table}


def written(text: str) -> str:
    """The page with its tables as they should be."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        assert end in rest, f"{FILE.name} has no place for {name}"
        text = f"{before}{begin}{table()}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
