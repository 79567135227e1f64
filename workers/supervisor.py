"""Starts services as processes of their own, exactly as in production, and ends every one of them.

A service leads a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone, which then stops the
services in order. Each holds the reading end of a pipe from the supervisor: if the supervisor dies without a word, even
by SIGKILL, the pipe closes and the service ends by itself (`end_with_parent`).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """A running child: what it is called, its process, where its log goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def alive(self) -> bool:
        return self.process.poll() is None

    def last_words(self, lines: int = 5) -> str:
        """The end of its log, for a person who wants to know why it ended."""
        text = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class ServiceEnded(RuntimeError):
    """A service ended that should be running."""


class Supervisor:
    """Context manager over the services of one demo or test."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._services: list[Service] = []
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Service:
        """Start `icg <arguments> --with-parent`, its output appended to `<logs>/<name>.log`."""
        path = self._logs / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers.cli", *arguments, "--with-parent"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        service = Service(name, process, path)
        self._services.append(service)
        return service

    def check(self) -> None:
        """Raises ServiceEnded with the service's last words if one is gone."""
        for service in self._services:
            if not service.alive():
                raise ServiceEnded(
                    f"{service.name} ended with status {service.process.returncode}; its log ends:\n"
                    f"{service.last_words()}\n(all of it: {service.log})"
                )

    def stop(self, seconds: float = 6.0) -> None:
        """SIGTERM to all at once, SIGKILL to what is left after so many seconds."""
        for service in self._services:
            if service.alive():
                service.process.terminate()
        deadline = time.monotonic() + seconds
        for service in self._services:
            try:
                service.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                # The whole session, because a service may have children (Faust has none today).
                os.killpg(service.process.pid, signal.SIGKILL)
                service.process.wait()
            if service.process.stdin:
                service.process.stdin.close()
        self._services.clear()


def end_with_parent(stop: threading.Event, grace_seconds: float = 12.0) -> None:
    """SIGTERM to this process when the pipe from the supervisor closes, and its end if that does not end it in time."""

    def wait() -> None:
        # The bare descriptor: a daemon thread inside `sys.stdin` makes the interpreter abort at its end.
        while os.read(0, 4096):
            pass
        if not stop.is_set():  # a second SIGTERM would cut the drain short
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os._exit(75)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def on_signals(stop: threading.Event, then: Callable[[], None] | None = None) -> None:
    """SIGTERM and SIGINT set `stop`; a second one ends the process at once."""

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        if then:
            then()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


@contextmanager
def ends_within(seconds: float, stop: threading.Event, end: Callable[[int], object] = os._exit) -> Iterator[None]:
    """Around a service that loses nothing by a sudden end: so long after `stop` at latest there is one.

    Args:
        end: called with 0, from another thread, if the block has not been left by then.
    """
    left = threading.Event()

    def watch() -> None:
        while not left.is_set() and not stop.wait(0.5):
            pass
        if not left.wait(seconds):
            log.warning("still not ended %g s after it was told to: ends at once", seconds)
            end(0)

    threading.Thread(target=watch, name="ends-within", daemon=True).start()
    try:
        yield
    finally:
        left.set()
