"""The demo as a newcomer runs it, and every command of the docs against it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.servers.process import free_port

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
ICG = [sys.executable, "-m", "workers.cli"]
PAGES_READ = 500
"""Enough for the learner to release a revision, few enough for a test."""


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that were told of this demo's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended while we looked
            continue
    return found


class RunningDemo:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.output = folder.parent / "output.txt"
        self.numbers = folder.parent / "numbers.json"
        arguments = ["--folder", str(folder), "--port", str(self.port), "--pages", str(PAGES_READ)]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*ICG, "demo", *arguments, "--json", str(self.numbers)],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                # What is tested is the loop, not the pictures: two steps draw them in a sixth of the time,
                # and one thread waits for no other while all cores have something to do.
                env={**os.environ, "COLUMNS": "120", "ICG_COVERS_STEPS": "2", "ICG_COVERS_THREADS": "1"},
            )

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while "Ctrl-C ends everything" not in self.output.read_text():
            logs = "\n".join(path.read_text()[-1500:] for path in (self.folder / "logs").glob("*.log"))
            assert self.process.poll() is None, f"{self.output.read_text()}\n{logs}"
            assert time.monotonic() < deadline, f"{self.output.read_text()}\n{logs}"
            time.sleep(0.3)

    @property
    def environment(self) -> dict[str, str]:
        lines = (self.folder / "env").read_text().splitlines()
        own = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, **{name: value.strip("'") for name, value in own.items()}, "PATH": path}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDemo]:
    running = RunningDemo(tmp_path_factory.mktemp("demo") / "demo")
    try:
        running.wait(540)
        yield running
    finally:
        running.process.kill()
        running.process.wait()


@pytest.mark.timeout(600)
def test_the_loop_closes(demo: RunningDemo) -> None:
    numbers = json.loads(demo.numbers.read_text())
    assert numbers["items"] >= 24
    assert numbers["covers"] == numbers["items"] * (numbers["covers"] // numbers["items"])
    assert numbers["covers"] // numbers["items"] >= 5, "segments and neutral"
    assert numbers["release_after"] > numbers["release_before"]
    assert numbers["events_learned"] > 0.9 * numbers["simulated_impressions"]
    assert numbers["dead_letters"] == 0


def test_a_second_demo_gets_one_clear_line(demo: RunningDemo) -> None:
    beside = [*ICG, "demo", "--exit", "--folder", str(demo.folder)]
    taken = subprocess.run([*beside, "--port", str(demo.port)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert taken.returncode == 1
    assert taken.stderr == f"icg: port {demo.port} is in use; choose another with --port\n"
    locked = subprocess.run(
        [*beside, "--port", str(free_port())], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert locked.returncode == 1
    assert re.fullmatch(r"icg: .* is in use by process \d+; .*\n", locked.stderr)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_the_docs_work(page: Path, demo: RunningDemo, tmp_path: Path) -> None:
    script = "set -euo pipefail\n" + "\n".join(blocks(page))
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=demo.environment, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_everything(demo: RunningDemo) -> None:
    """Last of this module: it ends the demo."""
    assert len(processes_of(demo.folder)) >= 4
    demo.process.send_signal(signal.SIGINT)
    demo.process.wait(60)
    assert processes_of(demo.folder) == []
