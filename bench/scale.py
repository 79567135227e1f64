"""What more covers workers bring: covers/s of n workers over those of one, on real servers and 32 partitions.

Each worker's generator sleeps instead of drawing, as if it had a GPU of its own, so that the figure is the stream's:
groups that are divided, offsets, uploads, Feast, `cover-ready`. What a worker does beside drawing takes CPU all the
same, so more workers than that CPU feeds do not scale on one machine; `cpu_busy` says how near it was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pydantic import SecretStr

from bench.stream import SEGMENTS
from bench.stream_world import World, publish
from icg.evaluation.report import Figure, report, versions
from infra.servers import kafka, redis, s3
from tests.faults.stage import Service, redis_store
from tests.zygote import Zygote
from workers.embedded import apply_feast
from workers.messaging import wait_for_broker
from workers.settings import S3, Covers, Kafka
from workers.topics import ensure_topics

PARTITIONS = 32
COVERS = len(SEGMENTS) + 1


@contextlib.contextmanager
def world_on(folder: Path, zygote: Zygote, segments: tuple[str, ...] = SEGMENTS) -> Iterator[World]:
    """Kafka, S3 and Redis as processes, and a released model."""
    broker, store, rows = kafka.Kafka(folder / "kafka"), s3.S3(folder / "s3"), redis.Redis(folder / "redis")
    try:
        for server in (broker, store, rows):
            server.start()
        for server in (broker, store, rows):
            server.wait()
        model = folder / "model"
        if zygote.start("tiny", [str(model), "0", "small"], {}, folder / "tiny.log").wait(900) != 0:
            raise RuntimeError((folder / "tiny.log").read_text()[-1000:])
        settings = Kafka(bootstrap_servers=broker.address)
        wait_for_broker(settings, 120)
        ensure_topics(settings, partitions=PARTITIONS)
        keys = {"access_key": SecretStr(store.access_key), "secret_key": SecretStr(store.secret_key)}
        covers = Covers(batch_items=4, slots=8, threads=1, upload_threads=8)
        feast = redis_store(folder / "feast", rows.address, apply_feast(folder / "applied"))
        world = World(folder, settings, S3(endpoint=store.address, **keys), feast, model, covers)
        world.release(segments)
        yield world
        world.close()
    finally:
        for server in (broker, store, rows):
            server.kill()


def rate(world: World, zygote: Zygote, workers: int, items: int, sleep: float) -> tuple[float, float]:
    """Covers/s of so many workers, and the share of this machine's CPU that was busy meanwhile."""
    names = [f"covers-{workers}.{number}" for number in range(workers)]
    services = [
        Service(name, zygote, world.environment(), world.folder, arguments=[f"sleep:{sleep}"]) for name in names
    ]
    try:
        for service in services:
            service.start()
        until = time.monotonic() + 120 + 30 * workers
        while not all(service.ready() for service in services):
            if time.monotonic() > until:
                raise RuntimeError(f"{workers} workers are not ready; the logs are in {world.folder}")
            time.sleep(0.5)
        warm = [world.send(publish(f"warm-{workers}-{n}")) for n in range(4 * workers)]
        world.wait(warm, 300)
        begun, idle = time.monotonic(), _idle()
        sent = [world.send_soon(publish(f"scale-{workers}-{n}")) for n in range(items * workers)]
        world.wait([source.result(60) for source in sent], 1800)
        seconds, cores = time.monotonic() - begun, len(os.sched_getaffinity(0))
        return items * workers * COVERS / seconds, 1 - (_idle() - idle) / seconds / cores
    finally:
        for service in services:
            service.drain(60)
        for service in services:
            shutil.rmtree(world.folder / service.name, ignore_errors=True)


def _idle() -> float:
    """Seconds for which the cores that we may use had nothing to do, all together (Linux)."""
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    return sum(float(line[4]) for line in lines if line[0] in ours) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--workers", default="1,2,4,8,16")
    parser.add_argument("--items", type=int, default=20, help="for each worker")
    parser.add_argument("--sleep", type=float, default=0.4, help="seconds a cover")
    options = parser.parse_args()
    counts = [int(count) for count in options.workers.split(",")]
    zygote = Zygote()
    found = {}
    try:
        with tempfile.TemporaryDirectory() as temporary, world_on(Path(temporary), zygote) as world:
            for count in counts:
                found[count] = rate(world, zygote, count, options.items, options.sleep)
                print(f"{count:3} workers: {found[count][0]:7.1f} covers/s, CPU {found[count][1]:.0%}", flush=True)
    finally:
        zygote.close()
    first = found[counts[0]][0] / counts[0]
    figures = []
    for count, (covers, busy) in found.items():
        figures.append(Figure(f"covers_per_second_{count}", round(covers, 1), note=f"{count} workers"))
        figures.append(Figure(f"cpu_busy_{count}", round(busy, 3), note="of the cores that we may use, by others, too"))
        if count > 1:
            least = 1.8 if count == 2 else None
            figures.append(Figure(f"ratio_{count}", round(covers / first, 2), least=least, note="over one worker"))
    facts = versions("faust-streaming", "aiokafka", "boto3") | {"partitions": PARTITIONS, "sleep": options.sleep}
    return 0 if report("Scaling: workers whose generator sleeps", figures, options.json, facts) else 1


if __name__ == "__main__":
    sys.exit(main())
