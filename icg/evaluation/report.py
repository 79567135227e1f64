"""How `icg eval` and every bench report: a table for people, and with `--json FILE` the same figures for machines."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from icg.tiny.files import write_whole


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number: its name in the JSON, its value, what is wanted of it, and how it was measured."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def wanted(self) -> str:
        bounds = [f">= {self.least:g}"] if self.least is not None else []
        return ", ".join(bounds + ([f"<= {self.most:g}"] if self.most is not None else []))

    @property
    def reached(self) -> bool | None:
        """None where nothing is wanted; a figure that is not finite never reaches."""
        if self.least is None and self.most is None:
            return None
        if not math.isfinite(self.value):
            return False
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)


def machine() -> dict[str, Any]:
    """Where the figures were measured. No host name and no path."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, for the `machine` part of a report."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def report(
    title: str, figures: Sequence[Figure], path: Path | None = None, machine_facts: Mapping[str, Any] | None = None
) -> bool:
    """Print the table, write `{"figures", "machine"}` to `path`, and say whether all wanted values were reached.

    Args:
        machine_facts: what this bench adds to `machine()`: versions, thread counts, which broker was used.
    """
    facts = {**machine(), **(machine_facts or {})}
    table = Table(title=title, caption=", ".join(f"{name} {value}" for name, value in facts.items()))
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("wanted", justify="right")
    table.add_column("")
    table.add_column("how")
    marks = {None: "", True: "[green]reached", False: "[red]missed"}
    for figure in figures:
        table.add_row(figure.name, _short(figure.value), figure.wanted, marks[figure.reached], escape(figure.note))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    if path is not None:
        body = {"figures": {f.name: f.value if math.isfinite(f.value) else None for f in figures}, "machine": facts}
        text = json.dumps(body, indent=2) + "\n"
        write_whole(path, lambda partial: partial.write_text(text))
    return all(figure.reached is not False for figure in figures)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
