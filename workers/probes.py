"""What a service says of itself over HTTP: ready or not, and one number of its metrics."""

from __future__ import annotations

import httpx


def ready(address: str) -> bool:
    """Does `/readyz` answer 200? A service that does not answer is not ready."""
    try:
        return httpx.get(f"{address}/readyz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def metric(address: str, name: str) -> float:
    """The sum over all labels of a metric at `/metrics`; 0 where it is not there or nobody answers."""
    try:
        text = httpx.get(f"{address}/metrics", timeout=2).text
    except httpx.HTTPError:
        return 0.0
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return sum(float(value) for label, value in lines if label.split("{")[0] == name)
