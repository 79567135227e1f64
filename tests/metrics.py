"""The metrics that the code has, read from its calls of prometheus_client: nothing is imported for it."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WORKERS = Path(__file__).resolve().parents[1] / "workers"
ENDINGS = {"Counter": ("_total", "_created"), "Gauge": ("",), "Histogram": ("_bucket", "_count", "_sum", "_created")}
FOREIGN = {"up", "process_start_time_seconds", "process_resident_memory_bytes"}
"""Prometheus' own, and those that prometheus_client gives every process."""
_SELECTOR = re.compile(r"\b(icg_[a-z0-9_]+)(?:\{([^}]*)\})?")


@dataclass(frozen=True)
class Metric:
    name: str
    kind: str
    what: str
    labels: tuple[str, ...]

    @property
    def series(self) -> set[str]:
        """As Prometheus stores it."""
        return {self.name + ending for ending in ENDINGS[self.kind]}


@cache
def in_code() -> list[Metric]:
    """All metrics of the services, by name."""
    found = []
    for path in WORKERS.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ENDINGS:
                if len(call.args) < 2 or not all(isinstance(each, ast.Constant) for each in call.args[:2]):
                    continue  # collections.Counter
                name, what = (ast.literal_eval(argument) for argument in call.args[:2])
                labels = tuple(ast.literal_eval(call.args[2])) if len(call.args) > 2 else ()
                found.append(Metric(name, call.func.id, what, labels))
    return sorted(found, key=lambda metric: metric.name)


def problems(expression: str) -> list[str]:
    """What a PromQL expression names and the code does not have: series, and labels in selectors and `by`."""
    known = {series: metric for metric in in_code() for series in metric.series}
    labels = {"job", "instance", "le"}
    wrong = []
    for series, selector in _SELECTOR.findall(expression):
        if series not in known:
            wrong.append(f"{series} is no metric")
            continue
        labels |= set(known[series].labels)
        asked = set(re.findall(r"(\w+)\s*[=!]~?", selector))
        wrong += [
            f"{series} has no label {label}" for label in sorted(asked - {*known[series].labels, "job", "instance"})
        ]
    grouped = {name.strip() for names in re.findall(r"\bby \(([^)]*)\)", expression) for name in names.split(",")}
    return wrong + [f"nothing here has a label {label}" for label in sorted(grouped - labels)]
