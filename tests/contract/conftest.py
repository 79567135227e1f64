"""One suite a port, every adapter of it.

The embedded servers are always there. A real one joins when its variable says where it is:

* `ICG_TEST_KAFKA`  host:port of a broker in plain text; topics of ours are created if they are not there.
* `ICG_TEST_S3`     http(s)://access:secret@host:port of an S3 store.
* `ICG_TEST_REDIS`  host:port; without it a `redis-server` found on PATH is started.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from workers.embedded import Embedded
from workers.messaging import ensure_topics
from workers.settings import S3, Feast, Kafka
from workers.storage import ObjectStore


def adapters(variable: str) -> list[str]:
    return ["embedded", "real"] if os.environ.get(variable) else ["embedded"]


@pytest.fixture(scope="session", params=adapters("ICG_TEST_KAFKA"))
def broker(request: pytest.FixtureRequest) -> Kafka:
    if request.param == "embedded":
        servers: Embedded = request.getfixturevalue("_servers")
        return servers.kafka
    kafka = Kafka(bootstrap_servers=os.environ["ICG_TEST_KAFKA"])
    ensure_topics(kafka)
    return kafka


@pytest.fixture(params=adapters("ICG_TEST_S3"))
def bucket(request: pytest.FixtureRequest) -> S3:
    """Settings of a bucket that is there and empty."""
    name = f"test-{uuid.uuid4().hex[:16]}"
    if request.param == "embedded":
        servers: Embedded = request.getfixturevalue("_servers")
        settings = servers.s3.model_copy(update={"bucket": name})
    else:
        url = urlsplit(os.environ["ICG_TEST_S3"])
        settings = S3(
            endpoint=f"{url.scheme}://{url.hostname}:{url.port}",
            bucket=name,
            access_key=SecretStr(url.username or ""),
            secret_key=SecretStr(url.password or ""),
        )
    ObjectStore(settings).ensure_bucket()
    return settings


@pytest.fixture(scope="session")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if address := os.environ.get("ICG_TEST_REDIS"):
        yield address
        return
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on PATH, and ICG_TEST_REDIS names none")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    server = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(params=["sqlite", "redis"])
def feast_store(
    request: pytest.FixtureRequest, feast_repo: Feast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Feast:
    """An applied feature store; ids in it are the test's own, the Redis server is shared."""
    if request.param == "sqlite":
        return feast_repo
    # The registry that was applied for SQLite serves as it is: applying creates tables there, and nothing in Redis.
    monkeypatch.setenv("FEAST_REDIS", request.getfixturevalue("redis_address"))
    monkeypatch.setenv("FEAST_REGISTRY", str(feast_repo.repo / "data" / "registry.db"))
    yaml = tmp_path / "redis.yaml"
    shutil.copy2(Feast().repo / "redis.yaml", yaml)
    return Feast(repo=feast_repo.repo, yaml=yaml)
