"""The api as a process: one uvicorn on one port, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import socket
import sys
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from workers.api.app import create_app
from workers.api.tastes import HeadWatcher, personal
from workers.exceptions import Stopped
from workers.features import Features
from workers.releases import Releases
from workers.settings import Settings
from workers.storage import ObjectStore, retrying
from workers.switches import SwitchWatcher

log = logging.getLogger(__name__)

GRACE_SECONDS = 3
"""For answers that are under way when we are told to stop; with closing the stores it stays under 5."""
BACKLOG = 2048


class _Server(uvicorn.Server):
    """Signals belong to whoever runs the service, who sets `stop`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises OSError where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Inherited by each connection. Head and body of an answer are two writes: without it the second one waits 40 ms
        # for the client's delayed acknowledgement of the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def run(settings: Settings, stop: threading.Event) -> int:
    """Serve until `stop` is set.

    Returns:
        The exit status: 0, or 2 where the address cannot be had.
    """
    host, port = settings.api.host, settings.api.port
    try:
        listener = listen(host, port)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
        print(f"icg: the api's address {host}:{port} {why}; choose another with ICG_API_PORT", file=sys.stderr)
        return 2
    # A reader waits for milliseconds: a store that hangs is a 503 after two seconds.
    store = ObjectStore(settings.s3, timeout=2, attempts=1)
    # Short of patience: what was switched off while S3 hung must act within 10 s of its return.
    switches = SwitchWatcher(ObjectStore(settings.s3, timeout=2, attempts=1))
    try:
        # One try more than none: a page waits for no third one, and 503 tells its client when to ask again.
        features = retrying(lambda: Features(settings.feast, tries=2), what="open the feature store", stop=stop)
    except Stopped:
        listener.close()
        return 0
    switches.start()
    heads = HeadWatcher(Releases(ObjectStore(settings.s3, timeout=10, attempts=1), settings.cache))
    if personal(settings.api):
        heads.start()
    app = create_app(settings, features, store, switches, heads)
    try:
        asyncio.run(_serve(app, listener, stop))
    finally:
        heads.stop()
        switches.stop()
        features.close()
        listener.close()
    return 0


async def _serve(app: FastAPI, listener: socket.socket, stop: threading.Event) -> None:
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )
    server = _Server(config)

    async def until_stopped() -> None:
        while not stop.is_set():
            await asyncio.sleep(0.1)
        server.should_exit = True

    watching = asyncio.create_task(until_stopped())
    # A page makes some 10,000 objects and drops them: collect less often, and never walk through Feast's modules.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    address = listener.getsockname()
    log.info("serving at http://%s:%d", address[0], address[1])
    await server.serve(sockets=[listener])
    watching.cancel()
