"""`python -m tests.faults.soak --minutes N`: all services under 80 % of what they can do, and whether they grow.

Every few seconds resident memory, open files and threads of each service are read. The second quarter of the run is
what its last quarter is held against: in the first one caches fill and libraries are loaded.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from icg.evaluation.report import Figure, report, versions
from tests.faults.run import ALL, Run
from tests.faults.stage import Servers
from tests.zygote import Zygote
from workers.embedded import apply_feast

LOAD = 0.8
EVERY = 2.0
"""Seconds between two samples."""
TOLD = 150
"""Samples between two lines of progress: five minutes."""
GROWTH = 0.02
SLACK = 2
"""Files or threads more than before: a connection that is being replaced, a thread that is just ending."""


@dataclass(frozen=True)
class Sample:
    rss: int
    """Bytes."""
    files: int
    threads: int


def sample(pid: int) -> Sample:
    """Of a process now (Linux)."""
    folder = Path(f"/proc/{pid}")
    pages = int((folder / "statm").read_text().split()[1])
    return Sample(pages * os.sysconf("SC_PAGE_SIZE"), _count(folder / "fd"), _count(folder / "task"))


def _count(folder: Path) -> int:
    return len(list(folder.iterdir()))


def growth(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """From the second quarter to the last: memory's, as a share, of the means; files' and threads', of the medians."""
    quarter = len(samples) // 4
    before, after = samples[quarter : 2 * quarter], samples[-quarter:]
    if not before:
        raise ValueError(f"{len(samples)} samples are too few")
    memory = statistics.fmean(each.rss for each in after) / statistics.fmean(each.rss for each in before) - 1
    files = statistics.median(each.files for each in after) - statistics.median(each.files for each in before)
    threads = statistics.median(each.threads for each in after) - statistics.median(each.threads for each in before)
    return memory, files, threads


def figures(seen: Mapping[str, Sequence[Sample]]) -> list[Figure]:
    found = []
    for name, samples in seen.items():
        memory, files, threads = growth(samples)
        megabytes = f"{samples[-1].rss / 2**20:.0f} MiB at the end"
        found += [
            Figure(f"{name}_memory_growth", round(memory, 4), most=GROWTH, note=megabytes),
            Figure(f"{name}_files", files, most=SLACK, note=f"{samples[-1].files} at the end"),
            Figure(f"{name}_threads", threads, most=SLACK, note=f"{samples[-1].threads} at the end"),
        ]
    return found


def soak(run: Run, seconds: float) -> tuple[dict[str, list[Sample]], float]:
    """Publish at `LOAD` of what a burst has shown; samples by service, and the rate in events/s."""
    if not run.wait(lambda: all(service.ready() for service in run.services), 600):
        raise RuntimeError("the services are not ready")
    for _ in range(2):  # the first burst warms them up
        begun = time.monotonic()
        burst = [run.send(event) for event in run.traffic.chunk(24)]
        run.wait(lambda burst=burst: all(map(run.ended, burst)), 600)  # type: ignore[misc]
        rate = LOAD * len(burst) / (time.monotonic() - begun)
    seen: dict[str, list[Sample]] = defaultdict(list)
    begun = next_sample = time.monotonic()
    sent = 0
    while (now := time.monotonic()) < begun + seconds:
        while sent < (now - begun) * rate:
            for event in run.traffic.chunk(1):
                run.send(event)
                sent += 1
            run.read_pages(5)
        if now >= next_sample:
            next_sample += EVERY
            for service in run.services:
                if service.running and service.child is not None:
                    seen[service.name].append(sample(service.child.pid))
            samples = max(map(len, seen.values()), default=1)
            if samples % TOLD == 0:
                resident = ", ".join(f"{name} {each[-1].rss / 2**20:.1f}" for name, each in seen.items())
                print(f"{(now - begun) / 60:.0f} min, {sent} events, MiB: {resident}", flush=True)
        run.look()
    return seen, rate


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for data and logs, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="icg-soak-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        zygote, servers = Zygote(), Servers(folder / "servers")
        try:
            servers.start()
            model = folder / "model"
            if zygote.start("tiny", [str(model), "0"], {}, folder / "tiny.log").wait(900) != 0:
                raise RuntimeError((folder / "tiny.log").read_text()[-1000:])
            run = Run(
                folder / "run", servers, apply_feast(folder / "applied"), model, zygote, options.seed, services=ALL
            )
            run.start()
            try:
                seen, rate = soak(run, 60 * options.minutes)
                ended = sum(len(service.ends) for service in run.services)
            finally:
                run.close()
        finally:
            servers.close()
            zygote.close()
    facts = versions("faust-streaming", "torch") | {"minutes": options.minutes, "events_per_second": round(rate, 2)}
    rows = [*figures(seen), Figure("ended_by_themselves", ended, most=0)]
    sys.exit(0 if report("Soak", rows, options.json, facts) else 1)


if __name__ == "__main__":
    main()
