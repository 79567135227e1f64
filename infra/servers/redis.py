"""Redis, with its log of writes on: what it has answered survives SIGKILL."""

from __future__ import annotations

from pathlib import Path

from infra.servers import install, tls_front
from infra.servers.process import Process, free_port
from infra.servers.s3 import Certificate


class Redis(Process):
    def __init__(
        self, folder: Path, *, port: int = 0, password: str | None = None, certificate: Certificate | None = None
    ) -> None:
        """
        Args:
            certificate: then it speaks TLS alone; clients need none of their own.
        """
        folder.mkdir(parents=True, exist_ok=True)
        port = port or free_port()
        self.address = f"127.0.0.1:{port}"
        self._front: Process | None = None
        lines = ["bind 127.0.0.1", f"dir {folder}", 'save ""', "appendonly yes", "appendfsync no"]
        if password is not None:
            lines.append(f"requirepass {password}")
        if certificate is None:
            lines.append(f"port {port}")
        elif install.redis_has_tls():
            lines += [
                "port 0",
                f"tls-port {port}",
                f"tls-cert-file {certificate.chain}",
                f"tls-key-file {certificate.key}",
                "tls-auth-clients no",
            ]
        else:
            encrypted, port = port, free_port()
            lines.append(f"port {port}")
            self._front = tls_front.front(folder, encrypted, certificate.chain, certificate.key, port)
        configuration = folder / "redis.conf"
        configuration.write_text("\n".join(lines) + "\n")
        super().__init__("redis", [str(install.redis()), str(configuration)], folder, port)

    def start(self) -> None:
        super().start()
        if self._front is not None:
            self._front.start()

    def wait(self, seconds: float = 120.0) -> None:
        super().wait(seconds)
        if self._front is not None:
            self._front.wait(seconds)

    def kill(self) -> None:
        if self._front is not None:
            self._front.kill()
        super().kill()

    def close(self, seconds: float = 10.0) -> None:
        if self._front is not None:
            self._front.close(seconds)
        super().close(seconds)
