"""A server as a child process: started, killed, paused, started again on the same port and data."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
_CHANCE = random.SystemRandom()  # not `random`, which tests seed alike in each of their processes


class StartError(Exception):
    """A server does not start; one line with the end of its log."""


def free_port() -> int:
    """A port that nobody listens on, by chance.

    Not one that the kernel gives for port 0: until the server has it, and whenever the server is away, the kernel would
    give it to somebody else. It takes those from 32768 on (Linux; elsewhere from 49152).
    """
    while True:
        port = _CHANCE.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def _end_with_parent() -> None:
    # Linux: SIGKILL when the thread that started us ends. Elsewhere a killed parent leaves its servers behind.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """Start it from the main thread: on Linux it ends with the thread that started it."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, port: int, environment: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            port: on 127.0.0.1; it serves once that accepts.
        """
        self.name = name
        self.port = port
        self.log = folder / f"{name}.log"
        self._folder = folder
        self._command = list(command)
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Return at once; `wait` says when it serves."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for whoever started it
                preexec_fn=_end_with_parent,
            )

    def wait(self, seconds: float = 120.0) -> None:
        """Until its port accepts.

        Raises:
            StartError: it ended, or does not serve in time.
        """
        until = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if not self.running or time.monotonic() > until:
                last = " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])
                state = "does not serve" if self.running else "ended"
                raise StartError(f"{self.name} {state}: {last or 'no message'} (log: {self.log})")
            time.sleep(0.05)

    def pause(self) -> None:
        """SIGSTOP: it hangs until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, whatever it is doing. `start` begins again on the same data."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()

    def close(self, seconds: float = 10.0) -> None:
        """SIGTERM, and SIGKILL after `seconds`."""
        if not self.running:
            return
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
