"""Is this process alive, and is it ready? Served as /healthz, /readyz and /metrics; a watchdog ends what hangs.

A worker that waits for S3 is alive and not ready. A worker that has work and gets nowhere is neither: it ends itself,
and whoever supervises it starts another.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Gauge, generate_latest

from workers.exceptions import UserError

log = logging.getLogger(__name__)

CONDITIONS = Gauge("icg_ready", "1 where a condition of readiness holds, 0 where it does not.", ["condition"])
STUCK = 70
"""Exit code of a process that its watchdog ended: EX_SOFTWARE of sysexits.h."""


class Health:
    """Readiness conditions, progress, and the small HTTP server that tells them. Thread-safe."""

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        service: str = "",
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """
        Args:
            port: 0: no server.
            host: in a container 0.0.0.0, so that its orchestrator reaches it.
            service: told by /healthz.

        Raises:
            UserError: the port cannot be had.
        """
        self.service = service
        self._lock = threading.Lock()
        self._conditions: dict[str, str | None] = {}
        self._progress = time.monotonic()
        self._watching = threading.Event()
        self._registry = registry
        self._server: ThreadingHTTPServer | None = None
        if port:
            try:
                self._server = _server(host, port, self)
            except OSError as error:
                raise UserError(f"port {port}, ICG_HEALTH_PORT: {error.strerror or error}") from None
            threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def set(self, condition: str, ok: bool, why: str = "") -> None:
        """State one condition of readiness; the first call makes it one.

        Args:
            why: in a few words what is wrong, for /readyz and the log.
        """
        with self._lock:
            new = condition not in self._conditions
            before = self._conditions.get(condition)
            self._conditions[condition] = None if ok else (why or "not ready")
        CONDITIONS.labels(condition).set(ok)
        if not ok and (new or before is None):
            log.warning("not ready: %s: %s", condition, why or "not ready")
        elif ok and before is not None:
            log.info("ready again: %s", condition)

    @property
    def ready(self) -> bool:
        """All conditions hold. False where none has been stated: the service has not come to that yet."""
        return not self.failed()

    def failed(self) -> dict[str, str]:
        """The conditions that do not hold, and why."""
        with self._lock:
            if not self._conditions:
                return {"service": "starting"}
            return {name: why for name, why in self._conditions.items() if why is not None}

    def progress(self) -> None:
        """Something was finished: the watchdog waits anew."""
        self._progress = time.monotonic()

    def idle_seconds(self) -> float:
        """Since the last progress."""
        return time.monotonic() - self._progress

    def watch(self, seconds: float, busy: Callable[[], bool], end: Callable[[int], object] = os._exit) -> None:
        """End the process when it is busy without progress for so long; its threads' stacks go to stderr.

        Args:
            busy: is there work to do? Called from the watchdog's thread. Waiting for a fault of ours to pass is not
                busy: the caller says so, or reports progress with each retry.
            end: called with `STUCK`.
        """

        def loop() -> None:
            pause = max(0.01, min(1.0, seconds / 4))
            while not self._watching.wait(pause):
                if not busy():
                    self.progress()
                elif self.idle_seconds() > seconds:
                    log.critical("no progress for %.0f s with work to do: ending this process", self.idle_seconds())
                    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
                    end(STUCK)
                    return

        self.progress()
        threading.Thread(target=loop, name="watchdog", daemon=True).start()

    def metrics(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    @property
    def port(self) -> int | None:
        """Where it serves, None where it does not."""
        return self._server.server_port if self._server else None

    def close(self) -> None:
        """End server and watchdog."""
        self._watching.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _server(host: str, port: int, health: Health) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/healthz":
                self._answer(200, {"alive": True, "service": health.service})
            elif path == "/readyz":
                failed = health.failed()
                self._answer(503 if failed else 200, {"ready": not failed, "failed": failed})
            elif path == "/metrics":
                self._send(200, health.metrics(), CONTENT_TYPE_LATEST)
            else:
                self._answer(404, {"paths": ["/healthz", "/readyz", "/metrics"]})

        def _answer(self, status: int, body: dict[str, object]) -> None:
            self._send(status, json.dumps(body).encode(), "application/json")

        def _send(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes come every few seconds: not in the log."""

    ThreadingHTTPServer.daemon_threads = True
    return ThreadingHTTPServer((host, port), Handler)
