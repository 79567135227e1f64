"""The pipeline on real Kafka, S3 and Redis while each of them, each service and the network between them fail.

`python -m tests.faults` does the same for as long as one likes. The planted bugs are in `make night`; that the checker
counts each, once what it sees has gone wrong, is in `test_checker.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.faults.audited import rows_found
from tests.faults.checker import Source, Twin, answers_went_back, went_back
from tests.faults.run import ALL, COVERS, Run, undisturbed
from tests.faults.stage import Servers
from tests.servers import Real, empty
from tests.zygote import Zygote
from workers.settings import Feast

pytestmark = [pytest.mark.real("kafka", "s3", "redis", only=True), pytest.mark.slow, pytest.mark.timeout(900)]

Make = Callable[..., Run]


@pytest.fixture(scope="module")
def servers(adapter: str, _real: Real, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Processes, always: they are to be killed. `_real` has seen to it that they are installed."""
    servers = Servers(tmp_path_factory.mktemp("faults"))
    servers.start()
    yield servers
    servers.close()


@pytest.fixture
def make(servers: Servers, _applied: Feast, tiny_model: Path, zygote: Zygote, tmp_path: Path) -> Iterator[Make]:
    made: list[Run] = []

    def run(seed: int, bug: str = "", services: Sequence[str] = COVERS) -> Run:
        empty(servers.kafka)
        folder = tmp_path / f"run-{len(made)}-{seed}"
        made.append(Run(folder, servers, _applied, tiny_model, zygote, seed, bug=bug, services=services))
        made[-1].start()
        return made[-1]

    yield run
    for each in made:
        each.close()
        each.empty()


@pytest.fixture
def compare(_applied: Feast, zygote: Zygote, tmp_path: Path) -> Callable[[Run], Twin]:
    return lambda run: undisturbed(run, tmp_path / "twin", _applied, zygote)


@pytest.mark.parametrize(
    ("services", "hows"),
    [
        pytest.param(COVERS, ("kill", "pause", "cut", "hang"), id="covers"),
        pytest.param(ALL, (), id="all", marks=[pytest.mark.night, pytest.mark.timeout(3600)]),
    ],
)
def test_faults_lose_nothing_and_repeat_nothing(
    make: Make, compare: Callable[[Run], Twin], services: Sequence[str], hows: Sequence[str]
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    run = make(seed, services=services)
    # One of each kind; which service, server or wire, and at which moment, is left to chance.
    kinds = hows or sorted({fault.partition(" ")[0] for fault in run.faults()})
    chosen = [run.random.choice([each for each in run.faults() if each.startswith(f"{kind} ")]) for kind in kinds]
    run.random.shuffle(chosen)
    for number, fault in enumerate(chosen):
        if number == 2:
            run.release_more()
        for event in run.traffic.chunk(6):
            run.send(event)
        run.read_pages(40)
        run.disturb(fault)
    report = run.finish(compare)
    print(report.faults, report.figures())
    assert report.stuck == []
    assert not any(report.findings.values()), report.findings
    assert report.compared > 4 * 4 * len(chosen)
    if services is ALL:
        assert min(report.audited, report.learned) > 40 * len(chosen)
        assert report.answers > 4 * len(chosen)
    assert len(report.recoveries) == len(chosen)


def begin(run: Run, items: int = 4) -> list[Future[Source]]:
    """Both services are up and share the work; then some events are in the making."""
    first = [run.send(run.traffic.publish()) for _ in range(8)]
    assert run.wait(lambda: all(map(run.ended, first)))
    return [run.send(run.traffic.publish()) for _ in range(items)]


@pytest.mark.night
def test_an_ack_before_the_manifest_is_counted(make: Make) -> None:
    run = make(1, "ack before manifest", services=COVERS[:1])
    sent = begin(run, 40)
    assert run.wait(lambda: sum(map(run.ended, sent)) > 3)
    for service in run.services:
        service.kill()
        service.start()
    run.wait(lambda: all(map(run.ended, sent)), 20)
    assert run.finish(patience=0).findings["lost"]


@pytest.mark.night
def test_a_put_without_if_match_is_counted(make: Make) -> None:
    run = make(2, "put without If-Match")
    for service in run.services * 4:
        begin(run, 16)
        # It stands still in the middle of items that another one draws meanwhile, in their next version.
        with run.fault(f"pause {service.name}", 6.0):
            pass
        if run.wait(lambda: bool(went_back(run.watcher.seen)), 5):
            break
    assert run.finish(patience=0).findings["stale"]


@pytest.mark.night
def test_an_ignored_retract_is_counted(make: Make) -> None:
    run = make(3, "retract ignored", services=COVERS[:1])
    begin(run)
    while not any(wanted.retracted for wanted in run.traffic.items.values()):
        for event in run.traffic.chunk(2):
            run.send(event)
    assert run.finish().findings["stale"]


@pytest.mark.night
def test_an_outage_that_becomes_a_dead_letter_is_counted(make: Make) -> None:
    run = make(4, "outage dead-lettered", services=COVERS[:1])
    sent = begin(run, 16)
    run.servers.proxies["s3"].cut()
    run.wait(lambda: any(map(run.ended, sent[-4:])), 60)
    run.servers.proxies["s3"].heal()
    assert any("valid, and dead-lettered" in line for line in run.finish().findings["lost"])


@pytest.mark.night
def test_a_commit_before_the_append_is_counted(make: Make) -> None:
    run = make(5, "commit before append", ["audit"])
    assert run.wait(run.services[0].ready)
    run.servers.proxies["s3"].cut()
    for _ in range(5):
        run.send(run.traffic.publish())
    assert run.wait(lambda: "append fails" in run.services[0].log.read_text())
    run.services[0].kill()
    run.servers.proxies["s3"].heal()
    run.services[0].start()
    assert run.wait(run.services[0].ready)
    assert run.finish(patience=10).findings["unaudited"]


@pytest.mark.night
def test_rows_that_are_appended_again_are_counted(make: Make) -> None:
    run = make(6, "append without transactions", ["audit"])
    for _ in range(2):
        run.send(run.traffic.publish())
        assert run.wait(lambda: bool(rows_found(run.world.settings.s3)))
        run.services[0].kill()
        run.services[0].start()
    assert run.finish(patience=60).findings["audited_twice"]


@pytest.mark.night
def test_behaviour_that_counts_twice_is_counted(make: Make) -> None:
    run = make(7, "state behind its offset", ["preferences"])
    run.read_pages(600)
    assert run.wait(lambda: any(key[-20:] != "0" * 20 for key in run.world.store.list("state/preferences/")))
    run.services[0].kill()
    run.services[0].start()
    assert run.finish(patience=30).findings["miscounted"]


@pytest.mark.night
def test_answers_that_go_back_are_counted(make: Make) -> None:
    run = make(8, "old rows answered", ["covers-1", "api"])
    sent = run.send(run.traffic.publish())
    assert run.reader is not None
    (item_id,) = run.traffic.items
    while not answers_went_back(run.reader.seen):
        assert run.wait(lambda sent=sent: run.ended(sent))  # type: ignore[misc]
        run.rest(3)
        sent = run.send(run.traffic.again(item_id))
    assert run.finish(patience=60).findings["answers_back"]
