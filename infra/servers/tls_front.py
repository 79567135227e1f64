"""TLS in front of a server that has none: `python -m infra.servers.tls_front PORT CHAIN KEY BACKEND_PORT`.

For the Redis of the Python package, which is compiled without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from pathlib import Path

from infra.servers.process import Process


def front(folder: Path, port: int, chain: Path, key: Path, backend: int) -> Process:
    command = [sys.executable, "-m", "infra.servers.tls_front", str(port), str(chain), str(key), str(backend)]
    return Process("tls", command, folder, port, {"PYTHONPATH": str(Path(__file__).parents[2])})


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _serve(port: int, chain: str, key: str, backend: int) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", backend)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

    async with await asyncio.start_server(client, "127.0.0.1", port, ssl=context) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
