"""`python -m infra.servers`: installs and starts all three and says their addresses; Ctrl-C ends them."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
from pathlib import Path

from infra.servers import install
from infra.servers.install import InstallError
from infra.servers.kafka import Kafka
from infra.servers.process import Process, StartError
from infra.servers.redis import Redis
from infra.servers.s3 import S3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m infra.servers", description=__doc__)
    parser.add_argument("--install", action="store_true", help="install them, and start nothing")
    parser.add_argument("--folder", type=Path, help="where they keep data and logs (default: a temporary folder)")
    for name, port in (("kafka", 9092), ("s3", 7070), ("redis", 6379)):
        parser.add_argument(f"--{name}-port", type=int, default=port, help=f"default {port}; 0: any that is free")
    options = parser.parse_args()
    stop = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stop.set())
    try:
        for server in (install.redis, install.kafka, install.versitygw):
            server()
        if not options.install:
            with tempfile.TemporaryDirectory(prefix="icg-servers-") as temporary:
                _serve(options, (options.folder or Path(temporary)).resolve(), stop)
    except (InstallError, StartError, OSError) as error:
        sys.exit(f"servers: {error}")


def _serve(options: argparse.Namespace, folder: Path, stop: threading.Event) -> None:
    servers: list[Process] = []
    kafka = Kafka(folder / "kafka", port=options.kafka_port)
    s3 = S3(folder / "s3", port=options.s3_port)
    redis = Redis(folder / "redis", port=options.redis_port)
    try:
        for server in (redis, s3, kafka):
            servers.append(server)
            server.start()
        for server in servers:
            server.wait()
        print(f"export ICG_TEST_KAFKA={kafka.address}")
        print(f"export ICG_TEST_S3=http://{s3.access_key}:{s3.secret_key}@127.0.0.1:{s3.port}")
        print(f"export ICG_TEST_REDIS={redis.address}")
        print(f"# Data and logs: {folder}. Ctrl-C ends them.", flush=True)
        while not stop.wait(0.5):
            if dead := [server.name for server in servers if not server.running]:
                raise StartError(f"{', '.join(dead)} ended; the logs are in {folder}")
    finally:
        for server in reversed(servers):
            server.close()


if __name__ == "__main__":
    main()
