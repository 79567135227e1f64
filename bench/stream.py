"""What the stream costs: covers/s of the whole service over covers/s of `generate()` alone.

Both arms draw the same covers (the bench compares their bytes): `icg-tiny`, 20 steps, 8 segments and neutral, equal
torch threads, batches of the same size. The stream's arm is the service as a process of its own with embedded Kafka, S3
and Feast: events, manifests, vectors, gate, rewards, WebP, uploads, Feast rows, `cover-ready`, commits. The bare arm is
`encode` and `generate` and nothing else. A round's time is from the first event's send to the last `cover-ready`, so
filling and draining the pipeline is in it.

The arms take turns, so that another load on the machine meets both; the figure is the median of the rounds' ratios. The
ceiling replaces the generator by one that sleeps 5 ms a cover: what the stream could carry if drawing cost no CPU.
`cpu_efficiency` is the same ratio in CPU seconds of the two processes: no other load on the machine moves it much, and
it counts nothing of what overlaps with drawing as free.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
from PIL import Image

from bench.stream_world import World, publish
from icg.evaluation.report import Figure, report, versions
from workers.embedded import Embedded
from workers.events import ItemPublish
from workers.records import Rendition, seed_of, sha256
from workers.settings import Covers, settings

if TYPE_CHECKING:
    from workers.covers.loading import MakeGenerator

SEGMENTS = tuple("abcdefgh")
COVERS = len(SEGMENTS) + 1
SLEEP = 0.005
STREAM, CEILING = "stream", "ceiling"


class Sleeper:
    """Takes so many seconds a cover and no CPU; its pictures are noise, each another."""

    def __init__(self, space: str, dimension: int, size: tuple[int, int], seconds: float) -> None:
        self._seconds = seconds
        self.space = space
        self.dimension = dimension
        self._size = size

    def encode(self, items: Sequence[Any]) -> Sequence[Any]:
        return items

    def generate(self, context: Any, vectors: Sequence[Sequence[Any]], seeds: Sequence[int]) -> list[list[Image.Image]]:
        time.sleep(self._seconds * sum(map(len, vectors)))
        drawn = []
        for row, seed in zip(vectors, seeds, strict=True):
            noise = np.random.default_rng(seed)
            coarse = [noise.integers(0, 255, (8, 8, 3), dtype=np.uint8) for _ in row]
            drawn.append([Image.fromarray(each).resize(self._size, Image.Resampling.BICUBIC) for each in coarse])
        return drawn

    def load_adapter(self, directory: str | Path, sampler: Any = None) -> None:
        raise ValueError("a sleeper has no adapter")


def sleeper(seconds: float) -> MakeGenerator:
    """Makes sleepers for releases."""

    def make(parts: Mapping[Any, Path], covers: Covers) -> Any:
        config = json.loads((parts["adapter"] / "config.json").read_text())
        return Sleeper(config["space"], config["dimension"], (covers.width, covers.height), seconds)

    return make


def serve(kind: str) -> int:
    """The service's process."""
    from workers import logs
    from workers.covers.loading import make_generator
    from workers.covers.service import run
    from workers.supervisor import end_with_parent, on_signals

    stop = threading.Event()
    on_signals(stop)
    end_with_parent(stop)
    logs.configure(settings(), "covers")
    return run(settings(), stop, make_generator if kind == STREAM else sleeper(SLEEP))


class Bare:
    """The bare arm: the generator alone, in this process."""

    def __init__(self, model: Path, covers: Covers, vectors: Sequence[Sequence[float]]) -> None:
        import torch

        from icg.generator import CoverGenerator
        from workers.covers.loading import sampler_config

        torch.set_num_threads(covers.threads)
        self._generator = CoverGenerator.from_pretrained(model, sampler=sampler_config(covers, model / "adapter"))
        self._vectors = [None, *(np.asarray(vector, np.float32) for vector in vectors)]
        self._batch = covers.batch_items

    def draw(self, events: Sequence[ItemPublish]) -> tuple[float, list[list[Image.Image]]]:
        """Seconds, and the pictures of each item."""
        from icg.item import Item

        drawn: list[list[Image.Image]] = []
        begun = time.monotonic()
        for start in range(0, len(events), self._batch):
            batch = events[start : start + self._batch]
            context = self._generator.encode([Item(title=event.title) for event in batch])
            seeds = [seed_of(event.item_id, event.item_version) for event in batch]
            drawn += self._generator.generate(context, [self._vectors] * len(batch), seeds)
        return time.monotonic() - begun, drawn


def stream(world: World, events: Sequence[ItemPublish], process: subprocess.Popen[bytes]) -> float:
    """Seconds from the first send to the last end."""

    def check() -> None:
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with status {process.returncode}")

    begun = time.monotonic()
    sources = [world.send_soon(event) for event in events]
    world.wait([source.result(20) for source in sources], 1800, check)
    if world.dead:
        raise RuntimeError(f"a dead letter: {world.reason(next(iter(world.dead)))}")
    return time.monotonic() - begun


def same_bytes(world: World, events: Sequence[ItemPublish], drawn: Sequence[Sequence[Image.Image]]) -> bool:
    """Whether the stream stored exactly what the bare arm drew."""
    from workers.covers.shelf import encode

    size = Rendition(width=world.settings.covers.width, height=world.settings.covers.height)
    for event, images in zip(events, drawn, strict=True):
        manifest = world.manifest(event.item_id)
        stored = [by["default"].sha256 for by in manifest.covers.values()] if manifest else []
        if stored != [sha256(encode(image, size)) for image in images]:
            return False
    return True


@dataclass(frozen=True)
class Round:
    """Seconds of both arms for the same covers, by the clock and of CPU; the bare arm's are 0 where there is none."""

    stream: float
    stream_cpu: float
    bare: float = 0.0
    bare_cpu: float = 0.0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def measure(world: World, kind: str, rounds: int, items: int, bare: Bare | None) -> list[Round]:
    """Both arms in turns."""
    log = (world.folder / f"{kind}.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", kind],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=world.environment(),
        start_new_session=True,
    )
    found = []
    try:
        warm_up = [publish(f"{kind}-warm-{n}") for n in range(world.settings.covers.batch_items)]
        stream(world, warm_up, process)
        if bare is not None:
            bare.draw(warm_up)
        for number in range(rounds):
            events = [publish(f"{kind}-{number}-{n}") for n in range(items)]
            before = cpu_seconds(process.pid)
            streamed = stream(world, events, process)
            used = cpu_seconds(process.pid) - before
            if bare is None:
                found.append(Round(streamed, used))
                continue
            before = cpu_seconds(os.getpid())
            seconds, drawn = bare.draw(events)
            found.append(Round(streamed, used, seconds, cpu_seconds(os.getpid()) - before))
            if not same_bytes(world, events, drawn):
                raise RuntimeError("the arms drew different covers")
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):  # what was measured counts, however long its end takes
            process.wait(30)
        process.kill()
        process.wait()
        log.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--items", type=int, default=24, help="items in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2, help="torch threads of either arm")
    parser.add_argument("--model", type=Path, help="a model directory; default: icg-tiny as shipped")
    parser.add_argument("--serve", choices=[STREAM, CEILING], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        os._exit(serve(options.serve))  # as `icg run` ends: threads of native libraries are still there
    covers = Covers(steps=options.steps, threads=options.threads, batch_items=4, slots=8)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = options.model
        if model is None:
            from icg.tiny import shipped

            model = folder / "model"
            shipped.write(model)
        with Embedded(folder / "servers") as servers:
            world = World(folder / "world", servers.kafka, servers.s3, servers.feast, model, covers)
            world.folder.mkdir(exist_ok=True)
            world.release(SEGMENTS)
            bare = Bare(model, covers, [world.vectors[name] for name in SEGMENTS])
            rounds = measure(world, STREAM, options.rounds, options.items, bare)
            ceiling = measure(world, CEILING, 1, 4 * options.items, None)
            world.close()
    ratios = [each.bare / each.stream for each in rounds]
    drawn = options.items * COVERS
    rate = 4 * drawn / ceiling[0].stream
    figures = [
        Figure("efficiency", statistics.median(ratios), least=0.90, note="stream over bare, median of the rounds"),
        Figure("efficiency_low", min(ratios), note="the worst round"),
        Figure("efficiency_high", max(ratios), note="the best round"),
        Figure(
            "cpu_efficiency",
            sum(each.bare_cpu for each in rounds) / sum(each.stream_cpu for each in rounds),
            note="the same in CPU seconds, all rounds",
        ),
        Figure("stream_covers_per_second", statistics.median(drawn / each.stream for each in rounds), note="service"),
        Figure("bare_covers_per_second", statistics.median(drawn / each.bare for each in rounds), note="generate()"),
        Figure("ceiling_covers_per_second", rate, note="drawing sleeps 5 ms a cover"),
        Figure("ceiling_efficiency", rate * SLEEP, note="over 200 covers/s, all that such a generator can"),
    ]
    facts = {
        **versions("torch", "diffusers", "faust-streaming", "aiokafka", "boto3"),
        "torch_threads": options.threads,
        "items": options.items,
        "rounds": options.rounds,
        "covers_an_item": COVERS,
        "broker": "embedded",
    }
    reached = report("Streaming: the whole service against the generator alone", figures, options.json, facts)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
