"""One suite a port, every adapter of it: tests marked `real` run on embedded servers and on real ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.servers import Real
from workers.settings import S3, Feast, Kafka
from workers.storage import ObjectStore


@pytest.fixture
def broker(kafka: Kafka) -> Kafka:
    return kafka


@pytest.fixture
def bucket(s3: S3) -> S3:
    """Settings of a bucket that is there and empty."""
    ObjectStore(s3).ensure_bucket()
    return s3


@pytest.fixture
def feast_store(
    adapter: str,
    feast_repo: Feast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Feast:
    """An applied feature store, SQLite or Redis; ids in it are the test's own, the Redis server is shared."""
    if adapter == "embedded":
        return feast_repo
    real: Real = request.getfixturevalue("_real")
    # The registry that was applied for SQLite serves as it is: applying creates tables there, and nothing in Redis.
    monkeypatch.setenv("FEAST_REDIS", real.redis)
    monkeypatch.setenv("FEAST_REGISTRY", str(feast_repo.repo / "data" / "registry.db"))
    yaml = tmp_path / "redis.yaml"
    shutil.copy2(Feast().repo / "redis.yaml", yaml)
    return Feast(repo=feast_repo.repo, yaml=yaml)
