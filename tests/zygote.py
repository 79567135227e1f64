"""A process that has imported what is heavy, and forks services and commands on request.

torch, diffusers and transformers take about 25 s of CPU to import, Feast, pandas and the like 2 to 6 s, and a test that
kills a service starts it again and again. Nothing is run before the fork but imports, so that a child is what a fresh
process would be.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.cli import _command as commands
from workers.feast_store import import_feast

FEAST = (
    # What opening a feature store would import.
    "feast.infra.offline_stores.dask",
    "feast.infra.online_stores.sqlite",
    "feast.infra.passthrough_provider",
)
LIGHT = (
    *FEAST,
    "deltalake",
    "duckdb",
    "pandas",
    "pyarrow.parquet",
    "workers.api.service",
    "workers.audit.cli",
    "workers.audit.service",
    "workers.cli",
    "workers.people.service",
    "workers.preferences.service",
    "workers.publishing",
    "workers.segments",
)
HEAVY = (
    *FEAST,
    "icg.init",
    "workers.covers.service",
    # What loading the tiny model would import.
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.llava.modeling_llava",
    "transformers.models.bert.modeling_bert",
    "transformers.models.clip.modeling_clip",
)


Icg = Callable[..., subprocess.CompletedProcess[str]]
"""Runs the command `icg`."""


class Zygote:
    """The test's side. Requests and answers are one JSON line each."""

    def __init__(self, preload: Path | None = None, *, torch: bool = True) -> None:
        """
        Args:
            preload: a library for its children, such as `tests.faults.clock.library`.
            torch: whether torch is imported, which covers needs and nothing else may have.
        """
        self.preloaded = preload is not None
        variables = {"LD_PRELOAD": str(preload)} if preload else {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", *(["torch"] if torch else [])],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
            start_new_session=True,
        )
        self._children: set[int] = set()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, what: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
        """Fork a child.

        Args:
            what: a service: `covers`, `preferences`, `audit` or `api`; `arguments` may be `bug:` with the name of a bug
                to plant (see `tests.faults.planted`), `clock:` with the file of its clock (see `tests.faults.clock`),
                and for `covers` titles at which it goes wrong (see `_Faulty`), or `sleep:` with the seconds that it
                takes for a cover instead of drawing it (see `bench.stream.Sleeper`).
                `tiny`: `icg.init_tiny`; `arguments` are directory and seed, and `small` for the sizes of `tests.small`.
                `icg`: the command with these arguments.
        """
        pid = self._ask(do=what, arguments=list(arguments), environment=dict(environment), log=str(log))
        self._children.add(pid)
        return Child(self, pid, log)

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """The command `icg`, from beginning to end."""
        with tempfile.TemporaryDirectory() as scratch:
            out, err = Path(scratch, "out"), Path(scratch, "err")
            pid = self._ask(
                do="icg",
                arguments=list(arguments),
                environment=dict(environment),
                log=str(out),
                errors=str(err),
            )
            self._children.add(pid)
            status = Child(self, pid, err).wait(240, every=0.01)
            return subprocess.CompletedProcess(["icg", *arguments], status, out.read_text(), err.read_text())

    def status(self, pid: int) -> int | None:
        """The exit status of a child (negative: the signal), None while it runs."""
        status: int | None = self._ask(do="status", pid=pid)
        if status is not None:
            self._children.discard(pid)
        return status

    def close(self) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)


class Child:
    """A forked process."""

    def __init__(self, zygote: Zygote, pid: int, log: Path) -> None:
        self._zygote = zygote
        self.pid = pid
        self.log = log

    def status(self) -> int | None:
        return self._zygote.status(self.pid)

    def wait(self, seconds: float, every: float = 0.05) -> int:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if (status := self.status()) is not None:
                return status
            time.sleep(every)
        raise TimeoutError(f"{self.pid} still runs; its log ends: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait(60)

    def terminate(self, seconds: float = 60) -> int:
        os.kill(self.pid, signal.SIGTERM)
        return self.wait(seconds)

    def check(self) -> None:
        if (status := self.status()) is not None:
            raise RuntimeError(f"it ended with status {status}; its log ends: {self.log.read_text()[-3000:]}")

    @contextlib.contextmanager
    def running(self) -> Iterator[Child]:
        try:
            yield self
        finally:
            if self.status() is None:
                self.kill()


def _child(request: dict[str, Any]) -> int:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(os.open(request["errors"], os.O_WRONLY | os.O_CREAT) if "errors" in request else log, 2)
    os.environ.update(request["environment"])
    if request["do"] == "icg":
        from workers.cli import main as icg

        sys.argv = ["icg", *request["arguments"]]
        icg()  # which ends the process
    if request["do"] == "tiny":
        from icg import init_tiny
        from tests.small import SIZES

        folder, seed, *small = request["arguments"]
        init_tiny(folder, seed=int(seed), sizes=SIZES if small else None)
        return 0
    import threading

    from workers import logs, tracing
    from workers.settings import settings
    from workers.supervisor import on_signals

    name = request["do"]
    for argument in request["arguments"]:
        kind, _, value = argument.partition(":")
        if kind == "clock":
            from tests.faults.clock import follow

            follow(value)
        if kind == "bug":
            from tests.faults.planted import plant

            plant(value)
    stop = threading.Event()
    on_signals(stop)
    logs.configure(settings(), name)
    tracing.configure(settings(), name)
    run = importlib.import_module(f"workers.{name}.service").run
    how = [_generator(request["arguments"])] if name == "covers" else []
    try:
        return int(run(settings(), stop, *how))
    finally:
        tracing.flush()


class _Faulty:
    """A real generator that goes wrong on certain titles, as faults that no input of ours provokes would."""

    def __init__(self, generator: Any, titles: Sequence[str]) -> None:
        self._generator = generator
        self._titles = titles

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def encode(self, items: Sequence[Any]) -> Any:
        titles = [item.title for item in items]
        if "Deadly" in self._titles and "Deadly" in titles:
            os.kill(os.getpid(), signal.SIGKILL)
        if "Impossible" in self._titles and "Impossible" in titles:
            raise RuntimeError("a size that does not fit")
        return titles, self._generator.encode(items)

    def generate(self, context: Any, vectors: Sequence[Sequence[Any]], seeds: Sequence[int]) -> list[list[Any]]:
        titles, real = context
        drawn: list[list[Any]] = self._generator.generate(real, vectors, seeds)
        for title, images, row in zip(titles, drawn, vectors, strict=True):
            for index, vector in enumerate(row):
                if title in self._titles and (title == "Blank" or (title == "Blank for some" and vector is not None)):
                    images[index] = images[index].point(lambda _: 128)
        return drawn


def _generator(arguments: Sequence[str]) -> Any:
    for argument in arguments:
        if argument.startswith("sleep:"):
            from bench.stream import sleeper

            return sleeper(float(argument.removeprefix("sleep:")))
    return _faulty(arguments)


def _faulty(titles: Sequence[str]) -> Any:
    from workers.covers.loading import make_generator

    def make(parts: Any, settings: Any) -> Any:
        return _Faulty(make_generator(parts, settings), titles)

    return make


def main() -> None:
    import_feast()  # not by its name: it takes three times as long with run-time checks of its types
    torch = "torch" in sys.argv[1:]
    for heavy in HEAVY if torch else LIGHT:
        importlib.import_module(heavy)
    if not torch:
        commands()  # all of them, to be parsed
    ended: dict[int, int] = {}
    started: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                ended[found[0]] = os.waitstatus_to_exitcode(found[1])
        if request["do"] == "status":
            answer = ended.get(request["pid"])
        elif (answer := os.fork()) == 0:
            status = 1
            try:
                status = _child(request)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(json.dumps(answer), flush=True)
        if answer is not None and request["do"] != "status":
            started.add(answer)
    for pid in started - ended.keys():  # whoever asked has ended, perhaps without a word
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
