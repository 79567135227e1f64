"""Servers for the tests, one set a session, kept apart by bucket, group and folder: light ones; for tests that are
marked `real("kafka", "s3", "redis")`, or with some of the three, embedded and real ones (all in `tests/servers.py`).

`embedded`: broker, S3 and Feast. `store`: an `ObjectStore` on a bucket of its own. `kafka`: the session's broker; its
topics are shared by the session's tests, so use groups and ids of your own. `own_kafka`: an empty broker for one test.
`own_servers`: a broker and a bucket for one module.
`feast_repo`: settings of an applied, empty feature store for one test. `zygote`: forks covers services quickly,
`light_zygote` the command `icg` and the other services.
`tiny_model`: a directory as `icg init tiny` makes it, only smaller (`tests/small.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["FEAST_USAGE"] = "False"
# Tensors here are small: threads would only wait for one another, and for those of the other pytest workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.faults import clock
from tests.servers import CI, Light, Real, missing
from tests.zygote import Zygote
from workers.embedded import Embedded, apply_feast
from workers.settings import S3, Feast, Kafka
from workers.storage import ObjectStore


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """What the first of the session's pytest workers that needs it makes for all: only to be read."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def _applied(tmp_path_factory: pytest.TempPathFactory) -> Feast:
    repo = tmp_path_factory.mktemp("feast") / "repo"
    shutil.copytree(made_once(tmp_path_factory, "applied", apply_feast), repo)
    return Feast(repo=repo, yaml=repo / "feature_store.yaml")


def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: two a core, 4 at most, each with 4 GiB: torch, two services beside it, Kafka and S3.

    Two cores keep four busy: with three, a quarter of their time went by waiting for servers.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(2 * cores, 4, _free_memory() // (4 * 2**30)))


def _free_memory() -> int:
    """Bytes, within a container's limit."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return free


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With `--reruns`: how each failed that passed at its second attempt, which pytest would not say."""
    failed = {report.nodeid for report in terminalreporter.stats.get("failed", [])}
    again = [report for report in terminalreporter.stats.get("rerun", []) if report.nodeid not in failed]
    if again:
        terminalreporter.section("failed once: to be mended", red=True)
    for report in again:
        terminalreporter.section(report.nodeid, sep="-")
        terminalreporter.write_line(report.longreprtext)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test runs on light servers; marked `real`, on embedded and on real ones, with `only=True` on those alone, with
    `light=True` on light and on real ones."""
    if "adapter" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("real")
    adapters = [pytest.param("light", id=pytest.HIDDEN_PARAM)]
    if marker is not None:
        adapters = [pytest.param("light" if marker.kwargs.get("light") else "embedded")]
        if marker.kwargs.get("only"):
            adapters.clear()
        absent = [] if CI else missing(marker.args)
        reason = f"no {', '.join(absent)}: `make servers` installs them"
        adapters.append(pytest.param("real", marks=[pytest.mark.skip(reason)] if absent else []))
    metafunc.parametrize("adapter", adapters, indirect=True, scope="session")


@pytest.fixture(scope="session")
def adapter(request: pytest.FixtureRequest) -> str:
    """Which servers the test runs on: "embedded" or "real"; "light" where it is about none."""
    return str(request.param)


@pytest.fixture(scope="session")
def _embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("embedded"), parts=("kafka", "s3")) as servers:
        yield servers


@pytest.fixture(scope="session")
def _light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Light]:
    with Light(tmp_path_factory.mktemp("light")) as servers:
        yield servers


@pytest.fixture(scope="session")
def _real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    if os.environ.get("ICG_TEST_KAFKA") and int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        pytest.fail("ICG_TEST_KAFKA names one broker, whose topics tests empty: run with TEST_WORKERS=0")
    real = Real(tmp_path_factory.mktemp("real"))
    yield real
    real.close()


@pytest.fixture(scope="session")
def _servers(adapter: str, request: pytest.FixtureRequest) -> Embedded | Real:
    servers: Embedded | Real = request.getfixturevalue(f"_{adapter}")
    return servers


@pytest.fixture(scope="session")
def embedded(_servers: Embedded | Real, _applied: Feast) -> Embedded | Real:
    _servers.feast = _applied
    return _servers


@pytest.fixture(scope="session")
def kafka(_servers: Embedded | Real) -> Kafka:
    return _servers.kafka


@pytest.fixture
def own_kafka(adapter: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Kafka]:
    if adapter == "real":
        real: Real = request.getfixturevalue("_real")
        yield real.empty_kafka()
        return
    with Embedded(tmp_path / "broker", parts=("kafka",)) as servers:
        yield servers.kafka


@pytest.fixture(scope="module")
def own_servers(
    adapter: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Embedded | Real]:
    if adapter == "real":
        real: Real = request.getfixturevalue("_real")
        yield real.fresh()
        return
    kind = Light if adapter == "light" else Embedded
    with kind(tmp_path_factory.mktemp("servers"), parts=("kafka", "s3")) as servers:
        yield servers


@pytest.fixture(autouse=True)
def _no_producer_is_left() -> Iterator[None]:
    """One that is not closed would deliver nothing at the end of a process, and log into the tests that follow."""
    before = set(threading.enumerate())
    yield
    left = [each.name for each in set(threading.enumerate()) - before if each.name.startswith("producer-")]
    assert not left, f"not closed: {', '.join(sorted(left))}"


@pytest.fixture
def s3(_servers: Embedded | Real) -> S3:
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
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(clock.library(tmp_path_factory.mktemp("clock")))
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def light_zygote() -> Iterator[Zygote]:
    zygote = Zygote(torch=False)
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.small import init_small

    return made_once(tmp_path_factory, "tiny", init_small)
