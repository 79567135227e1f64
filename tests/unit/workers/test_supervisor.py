import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from workers.settings import environment
from workers.supervisor import ServiceEnded, Supervisor, ends_within

# A service whose import is instant and that says when it runs.
CHILD = """
import sys, threading
from workers.supervisor import end_with_parent, on_signals
stop = threading.Event()
on_signals(stop)
end_with_parent(stop)
print("up", flush=True)
stop.wait()
print("drained", flush=True)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_service_ends_when_its_parent_dies(kill: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as lines:
        pid = int(lines.readline())
        assert lines.readline() == "up\n"
        parent.send_signal(kill)
        parent.wait()
        assert lines.readline() == "drained\n"
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_a_service_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as services:
        service = services.start("nonsense", ["run", "nonsense"], environment())
        service.process.wait(60)
        with pytest.raises(ServiceEnded, match=r"nonsense ended with status 2(.|\n)*no service"):
            services.check()


def test_stop_leaves_no_process(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    service = supervisor.start("help", ["simulate", "--help"], {**os.environ})
    supervisor.stop(0.0)
    assert not service.alive()


def test_a_service_that_hangs_after_it_was_told_to_end_is_ended() -> None:
    stop, hangs = threading.Event(), threading.Event()
    ended: list[int] = []

    def end(status: int) -> None:
        ended.append(status)
        hangs.set()

    stop.set()
    with ends_within(0.01, stop, end):
        assert hangs.wait(60)
    assert ended == [0]


def test_a_service_that_ends_in_time_is_left_alone() -> None:
    stop = threading.Event()
    ended: list[int] = []
    with ends_within(0.0, stop, ended.append):
        pass
    stop.set()
    until = time.monotonic() + 60
    while any(thread.name == "ends-within" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert ended == []
