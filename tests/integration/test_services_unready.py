"""A service without work notices, too, that servers are away, and that they are back."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import Light
from tests.waiting import until
from workers.health import Health
from workers.people.service import _run as run_people
from workers.preferences.service import _Service as Preferences
from workers.settings import Feast, Settings
from workers.storage import ObjectStore
from workers.topics import ensure_topics


@pytest.mark.parametrize(
    "run",
    [lambda *given: Preferences(*given).run(), run_people],
    ids=["preferences", "people"],
)
def test_it_is_not_ready_while_servers_are_away(
    run: Callable[[Settings, threading.Event, Health], int], feast_repo: Feast, tmp_path: Path
) -> None:
    with Light(tmp_path / "servers") as servers:
        settings = Settings(kafka=servers.kafka, s3=servers.s3, feast=feast_repo, cache=tmp_path / "cache")
        ensure_topics(settings.kafka)
        ObjectStore(settings.s3).ensure_bucket()
        health, stop = Health(), threading.Event()
        service = threading.Thread(target=run, args=(settings, stop, health))
        service.start()
        try:
            known = health._conditions
            until(lambda: all(name in known and known[name] is None for name in ("s3", "feast", "kafka")))
            servers.pause_s3()
            servers.pause_kafka()
            until(lambda: {"s3", "kafka"} <= health.failed().keys())
            servers.resume_kafka()
            servers.resume_s3()
            until(lambda: not {"s3", "kafka"} & health.failed().keys())
        finally:
            stop.set()
            service.join(60)
        assert not service.is_alive()
