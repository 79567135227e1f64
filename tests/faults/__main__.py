"""`python -m tests.faults --faults N --items M --json FILE`: the pipeline on real servers, and what faults do to it.

Ctrl-C ends the faults; what has come until then is judged.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from icg.evaluation.report import Figure, report, versions
from tests.faults import clock
from tests.faults.checker import Evidence, check
from tests.faults.run import Run, undisturbed
from tests.faults.stage import Servers
from tests.zygote import Zygote
from workers.embedded import apply_feast

WANTED = dict.fromkeys([*check(Evidence()), "stuck"], 0)


PAGES = 40
"""That people look at between two faults."""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--items", type=int, default=200, help="items published; other events come on top")
    parser.add_argument("--brokers", type=int, default=1, help="Kafka nodes; with three a killed leader is replaced")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", help="kinds of faults, such as 'kill s3,pause covers-1' (default: all)")
    parser.add_argument("--folder", type=Path, help="for data and logs, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    enough = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: enough.set())
    with tempfile.TemporaryDirectory(prefix="icg-faults-") as temporary:
        good = _run(options, (options.folder or Path(temporary)).resolve(), enough)
    sys.exit(0 if good else 1)


def _run(options: argparse.Namespace, folder: Path, enough: threading.Event) -> bool:
    print(f"seed {options.seed}", flush=True)
    zygote = Zygote(clock.library(folder / "clock"))
    servers = Servers(folder / "servers", options.brokers)
    try:
        servers.start()
        applied = apply_feast(folder / "applied")
        model = folder / "model"
        made = zygote.start("tiny", [str(model), "0"], {}, folder / "tiny.log")
        if made.wait(600) != 0:
            raise RuntimeError((folder / "tiny.log").read_text()[-1000:])
        run = Run(folder / "run", servers, applied, model, zygote, options.seed)
        run.start()
        kinds = options.only.split(",") if options.only else None
        there = set(run.faults())
        if unknown := set(kinds or ()) - there:
            raise SystemExit(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(sorted(there))}")
        chunks = options.faults + 1
        for number in range(chunks):
            if enough.is_set():
                break
            if number == chunks // 2:
                run.release_more()
            for event in run.traffic.chunk(options.items * (number + 1) // chunks - options.items * number // chunks):
                run.send(event)
            run.read_pages(PAGES)
            if number < options.faults:
                before = len(run.report.recoveries)
                run.disturb(run.random.choice(kinds) if kinds else None)
                found = [f"recovered in {seconds:.1f} s" for seconds in run.report.recoveries[before:]] or ["stuck"]
                print(f"{number + 1:4} {run.report.faults[-1]}: {found[0]}", flush=True)
        result = run.finish(lambda run: undisturbed(run, folder / "twin", applied, zygote))
        run.close()
    finally:
        servers.close()
        zygote.close()
    for name, lines in (result.findings | {"stuck": result.stuck}).items():
        for line in lines[:20]:
            print(f"{name}: {line}")
    figures = [Figure(name, value, most=WANTED.get(name)) for name, value in result.figures().items()]
    return report("Faults", figures, options.json, versions("confluent-kafka", "faust-streaming", "torch"))


if __name__ == "__main__":
    main()
