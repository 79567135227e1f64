"""Readiness, liveness and the watchdog."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from workers.exceptions import UserError
from workers.health import STUCK, Health


@pytest.fixture
def health() -> Iterator[Health]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    registry = CollectorRegistry()
    Counter("covers_drawn", "Covers.", registry=registry).inc(3)
    health = Health(port, service="covers", registry=registry)
    yield health
    health.close()


def get(health: Health, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{health.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_port_in_use_is_named(health: Health) -> None:
    with pytest.raises(UserError, match=f"port {health.port}, ICG_HEALTH_PORT: Address already in use"):
        Health(health.port)


def test_ready_while_every_condition_holds(health: Health) -> None:
    assert not health.ready
    assert get(health, "/readyz")[0] == 503
    health.set("kafka", True)
    assert health.ready
    health.set("s3", False, "does not answer")
    health.set("release", False)
    assert not health.ready
    status, body = get(health, "/readyz")
    assert status == 503
    assert json.loads(body) == {"ready": False, "failed": {"s3": "does not answer", "release": "not ready"}}
    health.set("s3", True)
    health.set("release", True)
    status, body = get(health, "/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True, "failed": {}})


def test_alive_though_not_ready(health: Health) -> None:
    health.set("s3", False)
    status, body = get(health, "/healthz")
    assert (status, json.loads(body)) == (200, {"alive": True, "service": "covers"})


def test_metrics_and_nothing_else(health: Health) -> None:
    status, body = get(health, "/metrics")
    assert status == 200
    assert "covers_drawn_total 3.0" in body
    assert get(health, "/etc/passwd")[0] == 404


def test_changes_of_readiness_are_logged_once(health: Health, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for ok in (True, False, False, True, True):
        health.set("s3", ok, "away")
    assert [r.getMessage() for r in caplog.records if r.name == "workers.health"] == [
        "not ready: s3: away",
        "ready again: s3",
    ]


def test_no_server_without_a_port() -> None:
    assert Health().port is None


def test_the_watchdog_ends_what_is_busy_and_gets_nowhere() -> None:
    health, ended, codes = Health(), threading.Event(), []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    health.watch(0.1, lambda: True, end)
    assert ended.wait(10)
    assert codes == [STUCK]


def test_the_watchdog_leaves_the_idle_alone_and_those_with_progress() -> None:
    idle, busy, ended = Health(), Health(), threading.Event()
    asked = threading.Semaphore(0)

    def waiting() -> bool:
        asked.release()
        return False

    def working() -> bool:
        busy.progress()
        asked.release()
        return True

    idle.watch(0.1, waiting, lambda _: ended.set())
    busy.watch(0.1, working, lambda _: ended.set())
    for _ in range(30):
        assert asked.acquire(timeout=10)
    assert not ended.is_set()
    idle.close()
    busy.close()


def test_a_process_that_hangs_ends_with_its_stacks_on_stderr() -> None:
    code = textwrap.dedent(
        """
        import threading
        from workers.health import Health
        Health().watch(0.2, lambda: True)
        def stuck_here():
            threading.Event().wait()
        stuck_here()
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == STUCK
    assert "stuck_here" in done.stderr
