"""Broker, S3 and Feast on this machine, for the demo and the tests: nothing to install, nothing left behind.

Broker (librdkafka's mock cluster) and S3 (moto's server) are processes of their own, in sessions of their own, so that
a Ctrl-C at the services' terminal does not take them away first. They hold everything in memory and end when the pipe
from their supervisor closes, which the kernel does even for a supervisor that was killed.

Outages are made by `pause_…` and `resume_…` (SIGSTOP, SIGCONT): connections stay, nobody answers, the data survives.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pydantic import SecretStr

from workers.exceptions import EmbeddedError
from workers.feast_store import apply, import_feast
from workers.settings import S3, Feast, Kafka

PARTITIONS = 4
"""Of every topic on the mock cluster; librdkafka offers no say in it."""


class Server:
    """A child process that prints one JSON line when it serves and ends when its stdin closes."""

    def __init__(self, kind: str, port: int, logs: Path, seconds: float = 120.0) -> None:
        """
        Args:
            kind: "broker" or "s3".
            port: 0: any that is free.
            logs: folder for its stderr.

        Raises:
            EmbeddedError: it does not serve within `seconds`; one line says why.
        """
        self.kind = kind
        if port:
            _check_free(kind, port)
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{kind}.log"
        with self.log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.embedded", kind, str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        self.address = self._address(seconds)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def _address(self, seconds: float) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], seconds)
        line = stdout.readline() if ready else b""
        if line:
            return str(json.loads(line)["address"])
        self.close()
        last = self.log.read_text(errors="replace").strip().splitlines()
        raise EmbeddedError(f"the embedded {self.kind} does not start: {last[-1] if last else 'no answer'}")

    def pause(self) -> None:
        """Return once it stands still: on a busy machine it would still answer a request or two."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it; within 5 s, kindly or not."""
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _check_free(kind: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EmbeddedError(f"port {port}, wanted for the embedded {kind}: {error.strerror}") from None


class FolderLock:
    """One embedded system a folder: a second one would share its feature store and mix two demos."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            EmbeddedError: another process holds it, or the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = (folder / "lock").open("a+")
        except OSError as error:
            raise EmbeddedError(f"cannot write to {folder}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip()
            self._file.close()
            by = f" by process {owner}" if owner else ""
            raise EmbeddedError(f"{folder} is in use{by}; end that demo or give another folder") from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        self._file.close()


class Embedded:
    """Broker, S3 with its bucket and an applied SQLite feature store. A context manager; `close` ends all of it.

    Attributes:
        kafka, s3, feast: the settings sections to give to services, e.g. by `environment(kafka=…, s3=…, feast=…)`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kafka_port: int = 0,
        s3_port: int = 0,
        parts: Iterable[str] = ("kafka", "s3", "feast"),
        fresh: Iterable[str] = (),
    ) -> None:
        """
        Args:
            folder: made if absent; holds logs/ and feast/, the feature store: left at the end, emptied at the start.
            kafka_port, s3_port: 0: any that is free.
            parts: which of the three to start.
            fresh: subfolders of `folder` to remove first, once it is locked.

        Raises:
            EmbeddedError: a port or the folder is in use, or a server does not start; one line for a person.
        """
        self.folder = folder
        self.kafka = Kafka()
        self.s3 = S3()
        self.feast = Feast()
        self._servers: dict[str, Server] = {}
        self._lock = FolderLock(folder)
        try:
            for name in fresh:
                shutil.rmtree(folder / name, ignore_errors=True)
            self._start(set(parts), kafka_port, s3_port)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise EmbeddedError(f"cannot start in {folder}: {error.strerror or error}") from None
            raise

    def _start(self, parts: set[str], kafka_port: int, s3_port: int) -> None:
        # Each takes a second or so of imports: start them beside each other, on the ports asked for.
        wanted = {"broker": ("kafka", kafka_port), "s3": ("s3", s3_port)}
        failures: list[BaseException] = []

        def start(kind: str, port: int) -> None:
            try:
                self._servers[kind] = Server(kind, port, self.folder / "logs")
            except BaseException as error:
                failures.append(error)

        threads = [
            threading.Thread(target=start, args=(kind, port)) for kind, (part, port) in wanted.items() if part in parts
        ]
        for thread in threads:
            thread.start()
        try:
            if "feast" in parts:
                import_feast()
        finally:
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        if "feast" in parts:
            self.feast = apply_feast(self.folder / "feast")
        if "kafka" in parts:
            from workers.topics import ensure_topics

            self.kafka = Kafka(bootstrap_servers=self._servers["broker"].address, embedded=True)
            ensure_topics(self.kafka)
        if "s3" in parts:
            from workers.storage import ObjectStore

            self.s3 = S3(
                endpoint=self._servers["s3"].address,
                bucket="icg",
                region="us-east-1",
                access_key=SecretStr("embedded"),
                secret_key=SecretStr("embedded"),
            )
            ObjectStore(self.s3).ensure_bucket()

    def pause_kafka(self) -> None:
        """The broker hangs until `resume_kafka`."""
        self._servers["broker"].pause()

    def resume_kafka(self) -> None:
        self._servers["broker"].resume()

    def pause_s3(self) -> None:
        """S3 hangs until `resume_s3`."""
        self._servers["s3"].pause()

    def resume_s3(self) -> None:
        self._servers["s3"].resume()

    def check(self) -> None:
        """
        Raises:
            EmbeddedError: a server has died; its data is gone, so nothing restarts it.
        """
        for server in self._servers.values():
            if not server.running:
                raise EmbeddedError(f"the embedded {server.kind} died; see {server.log}")

    def close(self) -> None:
        """End both servers and let the folder go. Stop the services first."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        self._lock.release()

    def __enter__(self) -> Embedded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def apply_feast(folder: Path) -> Feast:
    """Make `folder` a copy of the feature repository with an empty SQLite store of its own, and apply it.

    Raises:
        EmbeddedError: Feast refuses; one line says why.
    """
    template = Feast().repo
    folder.mkdir(parents=True, exist_ok=True)
    for file in template.glob("*.py"):
        shutil.copy2(file, folder / file.name)
    shutil.rmtree(folder / "data", ignore_errors=True)  # broker and S3 begin empty, and so does this
    (folder / "data").mkdir()
    yaml = folder.resolve() / "feature_store.yaml"
    shutil.copy2(template / yaml.name, yaml)  # its paths are relative to the folder it lies in
    feast = Feast(repo=folder.resolve(), yaml=yaml)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # a line for each of its objects
            apply(feast)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__  # pydantic's take many lines
        raise EmbeddedError(f"the feature store cannot be set up in {folder}: {why}") from error
    return feast


# What runs in the child processes.


def _serve_broker(port: int) -> str:
    inner = _mock_cluster()
    if not port:
        return inner
    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    threading.Thread(target=_forward, args=(listener, int(inner.rpartition(":")[2])), daemon=True).start()
    return f"127.0.0.1:{port}"


def _mock_cluster() -> str:
    """Start librdkafka's mock cluster in this process, for as long as it lives; its address.

    Through the C library, because only there a group's first rebalance can be told not to wait 3 s for more members.
    """
    import confluent_kafka

    package = Path(confluent_kafka.__file__).parent
    wheels = (*package.with_name("confluent_kafka.libs").glob("librdkafka*"), *package.glob(".dylibs/librdkafka*"))
    if not wheels:  # built against a librdkafka of the system's: slower, otherwise the same
        client = confluent_kafka.Producer({"test.mock.num.brokers": 1, "log_level": 3})
        threading.Thread(target=_poll_for_ever, args=(client,), daemon=True).start()
        broker = next(iter(client.list_topics(timeout=10).brokers.values()))
        return f"127.0.0.1:{broker.port}"
    library = ctypes.CDLL(str(wheels[0]))
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_handle_mock_cluster"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    error = ctypes.create_string_buffer(512)
    config = ctypes.c_void_p(library.rd_kafka_conf_new())
    for option, value in ((b"test.mock.num.brokers", b"1"), (b"log_level", b"3")):
        library.rd_kafka_conf_set(config, option, value, error, ctypes.c_size_t(512))
    producer = 0
    client = ctypes.c_void_p(library.rd_kafka_new(producer, config, error, ctypes.c_size_t(512)))
    cluster = ctypes.c_void_p(library.rd_kafka_handle_mock_cluster(client))
    if not cluster:
        sys.exit(f"librdkafka makes no mock cluster: {error.value.decode()}")
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, ctypes.c_int32(200))
    return str(library.rd_kafka_mock_cluster_bootstraps(cluster).decode())


def _poll_for_ever(client: Any) -> None:
    while True:
        client.poll(1.0)


def _forward(listener: socket.socket, port: int) -> None:
    """A chosen port for the mock cluster, which takes only random ones: clients bootstrap here, and learn that one."""
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", port))
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def _serve_s3(port: int) -> str:
    import logging

    from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = create_backend_app("s3")  # S3 alone: moto's dispatcher looks through 170 folders with each request
    writing = threading.Lock()

    def one_writer(environ: dict[str, Any], start_response: Any) -> Any:
        # moto compares ETags and writes in two steps; S3 does it in one.
        if environ["REQUEST_METHOD"] in {"PUT", "POST", "DELETE"}:
            with writing:
                return application(environ, start_response)
        return application(environ, start_response)

    MotoRequestHandler.protocol_version = "HTTP/1.1"  # connections are kept, as S3 keeps them
    server = make_server("127.0.0.1", port, one_writer, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def _main(kind: str, port: int) -> None:
    # Ctrl-C is the supervisor's business: the pipe tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        address = _serve_broker(port) if kind == "broker" else _serve_s3(port)
    except OSError as error:
        sys.exit(f"port {port}: {error.strerror or error}")
    print(json.dumps({"address": address}), flush=True)
    while sys.stdin.buffer.read(4096):
        time.sleep(0)
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
