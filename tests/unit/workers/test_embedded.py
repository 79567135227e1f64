"""The embedded servers start on request, stand in nobody's way, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.waiting import until
from workers.embedded import Embedded, FolderLock, apply_feast
from workers.exceptions import EmbeddedError
from workers.features import Features
from workers.messaging import Consumer, Producer, wait_for_broker
from workers.settings import Feast, Kafka
from workers.storage import ObjectStore


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def test_both_serve_on_the_ports_asked_for(tmp_path: Path) -> None:
    kafka_port, s3_port = free_port(), free_port()
    with Embedded(tmp_path, kafka_port=kafka_port, s3_port=s3_port, parts=("kafka", "s3")) as servers:
        assert servers.kafka.bootstrap_servers == f"127.0.0.1:{kafka_port}"
        assert servers.s3.endpoint == f"http://127.0.0.1:{s3_port}"
        producer = Producer(servers.kafka, "test")
        assert producer.send("item-publish", b"x").result(20)
        producer.close()
        assert ObjectStore(servers.s3).ping()
        servers.check()


@pytest.mark.parametrize("which", ["kafka_port", "s3_port"])
def test_a_port_in_use_gets_one_line(tmp_path: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedError, match=rf"port {port}, wanted for .*: Address already in use") as caught:
            Embedded(tmp_path, parts=("kafka", "s3"), **{which: port})
    assert "\n" not in str(caught.value)
    Embedded(tmp_path, parts=()).close()  # the folder is free again


def test_a_second_one_in_the_same_folder_gets_one_line(tmp_path: Path) -> None:
    with Embedded(tmp_path, parts=()), pytest.raises(EmbeddedError, match=rf"in use by process {os.getpid()}"):
        Embedded(tmp_path, parts=())
    Embedded(tmp_path, parts=()).close()


def test_a_folder_that_cannot_be_written_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match="cannot write to"):
        FolderLock(tmp_path / "file" / "demo")


def test_a_feature_store_that_cannot_be_made_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "feast").write_text("in the way")
    with pytest.raises(EmbeddedError, match="cannot start in") as caught:
        Embedded(tmp_path, parts=("feast",))
    assert "\n" not in str(caught.value)


def test_what_feast_objects_to_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(feast: Feast) -> None:
        Kafka.model_validate({"bootstrap_servers": []})  # Feast's own configuration is pydantic's, too

    monkeypatch.setattr("workers.embedded.apply", refuse)
    with pytest.raises(EmbeddedError, match="the feature store cannot be set up in ") as caught:
        apply_feast(tmp_path / "feast")
    assert len(str(caught.value.__cause__).splitlines()) > 1
    assert "\n" not in str(caught.value)


def test_the_feature_store_begins_as_empty_as_broker_and_s3(tmp_path: Path) -> None:
    """Else its rows would name covers of the last demo, which went with that demo's S3."""
    last = tmp_path / "feast" / "data" / "online_store.db"
    last.parent.mkdir(parents=True)
    last.write_bytes(b"of the last demo")
    features = Features(apply_feast(tmp_path / "feast"))
    assert features.read(["item_covers:state"], [{"item_id": "i"}]) == [{"item_id": "i", "state": None}]
    features.close()


def test_a_paused_server_stands_still_and_goes_on(tmp_path: Path) -> None:
    with Embedded(tmp_path, parts=("s3",)) as servers:
        store = ObjectStore(servers.s3, timeout=0.3)
        for _ in range(3):
            servers.pause_s3()
            servers.pause_s3()
            assert not store.ping()
            servers.resume_s3()
            assert ObjectStore(servers.s3).ping()
        servers.pause_s3()  # and ends though it stands still


SUPERVISOR = textwrap.dedent(
    """
    import signal, sys, time
    from pathlib import Path
    from workers.embedded import Embedded
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits that it is ignored
    servers = Embedded(Path(sys.argv[1]), parts=("kafka", "s3"))
    print(*(server.pid for server in servers._servers.values()), flush=True)
    time.sleep(600)
    """
)


def supervisor(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(folder)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    pids = [int(each) for each in process.stdout.readline().split()]
    assert len(pids) == 2
    return process, pids


def test_they_end_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    process, pids = supervisor(tmp_path)
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.wait()
    until(lambda: not any(alive(pid) for pid in pids))


def test_ctrl_c_at_the_terminal_does_not_reach_them(tmp_path: Path) -> None:
    """Services have to be stopped first; the servers end when the supervisor closes their pipes."""
    process, pids = supervisor(tmp_path)
    for pid in pids:
        assert os.getsid(pid) != os.getsid(process.pid)
        os.kill(pid, signal.SIGINT)
    time.sleep(0.3)
    assert all(alive(pid) for pid in pids)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(30)
    until(lambda: not any(alive(pid) for pid in pids))


def test_a_server_that_died_is_noticed(tmp_path: Path) -> None:
    with Embedded(tmp_path, parts=("s3",)) as servers:
        servers.check()
        os.kill(servers._servers["s3"].pid, signal.SIGKILL)
        until(lambda: not servers._servers["s3"].running)
        with pytest.raises(EmbeddedError, match="the embedded s3 died"):
            servers.check()


def test_the_broker_survives_clients_that_come_and_go(own_kafka: Kafka) -> None:
    for number in range(15):
        producer = Producer(own_kafka, f"p{number}")
        consumer = Consumer(own_kafka, f"g{number % 3}", ["item-refresh"])
        future = producer.send("item-refresh", b"x")
        consumer.poll(1, 0.05)
        if number % 2:
            future.result(20)
        consumer.close()
        producer.close()
    # Some that never say goodbye.
    code = "import sys, confluent_kafka as k; c = k.Consumer({'bootstrap.servers': sys.argv[1], 'group.id': 'g'}); "
    code += "c.subscribe(['item-refresh']); c.poll(0.5); import os; os._exit(0)"
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code, own_kafka.bootstrap_servers], check=True)
    wait_for_broker(own_kafka, 5)
    producer = Producer(own_kafka, "last")
    assert producer.send("item-refresh", b"x").result(20)
    producer.close()
