"""TCP through a wire that can be cut, hang or be slow: what a network does to a server's clients."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

from infra.servers.process import free_port


class Proxy:
    """Forwards a port of its own to another one, in a thread of its own."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._cut = False
        self._delay = 0.0
        self._open: set[asyncio.StreamWriter] = set()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._server = self._run(asyncio.start_server(self._connected, "127.0.0.1", self.port))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Every connection is reset, and every new one, until `heal`."""

        async def cut() -> None:
            self._cut = True
            for writer in self._open:
                writer.transport.abort()

        self._run(cut())

    def hang(self) -> None:
        """Nothing arrives until `heal`; connections stay."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def slow(self, seconds: float) -> None:
        """Each piece of data takes so much longer, either way."""
        self._delay = seconds

    def heal(self) -> None:
        self._cut, self._delay = False, 0.0
        self._loop.call_soon_threadsafe(self._flowing.set)

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._open |= both
        if self._cut:  # meanwhile
            for each in both:
                each.transport.abort()
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        self._open -= both

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flowing.wait()
                target.write(data)
                await target.drain()
        with contextlib.suppress(OSError):
            target.close()
