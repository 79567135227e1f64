"""Servers for the tests: real ones, embedded, one set a session, kept apart by bucket, group and folder.

`embedded`: broker, S3 and Feast. `store`: an `ObjectStore` on a bucket of its own. `kafka`: the session's broker; its
topics are shared by the session's tests, so use groups and ids of your own. `own_kafka`: an empty broker for one test.
`feast_repo`: settings of an applied, empty feature store for one test. `zygote`: forks covers services quickly.
`tiny_model`: a directory that `icg init tiny` made.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["FEAST_USAGE"] = "False"

from tests.zygote import Zygote
from workers.embedded import Embedded, apply_feast
from workers.settings import S3, Feast, Kafka
from workers.storage import ObjectStore


@pytest.fixture(scope="session")
def _applied(tmp_path_factory: pytest.TempPathFactory) -> Feast:
    return apply_feast(tmp_path_factory.mktemp("feast") / "repo")


@pytest.fixture(scope="session")
def _servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("embedded"), parts=("kafka", "s3")) as servers:
        yield servers


@pytest.fixture(scope="session")
def embedded(_servers: Embedded, _applied: Feast) -> Embedded:
    _servers.feast = _applied
    return _servers


@pytest.fixture(scope="session")
def kafka(_servers: Embedded) -> Kafka:
    return _servers.kafka


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[Kafka]:
    with Embedded(tmp_path / "broker", parts=("kafka",)) as servers:
        yield servers.kafka


@pytest.fixture
def s3(_servers: Embedded) -> S3:
    """Settings of a bucket of this test's own."""
    return _servers.s3.model_copy(update={"bucket": f"test-{uuid.uuid4().hex[:16]}"})


@pytest.fixture
def store(s3: S3) -> ObjectStore:
    store = ObjectStore(s3)
    store.ensure_bucket()
    return store


@pytest.fixture
def feast_repo(_applied: Feast, tmp_path: Path) -> Feast:
    repo = tmp_path / "feature_repo"
    shutil.copytree(_applied.repo, repo)
    return Feast(repo=repo, yaml=repo / "feature_store.yaml")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def tiny_model(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    child = zygote.start("tiny", [str(folder / "tiny"), "0"], {}, folder / "tiny.log")
    assert child.wait(240) == 0, (folder / "tiny.log").read_text()
    return folder / "tiny"
