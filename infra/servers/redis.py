"""Redis, with its log of writes on: what it has answered survives SIGKILL."""

from __future__ import annotations

from pathlib import Path

from infra.servers import install
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
        plain, encrypted = (0, port) if certificate else (port, 0)
        lines = ["bind 127.0.0.1", f"port {plain}", f"dir {folder}", 'save ""', "appendonly yes", "appendfsync no"]
        if password is not None:
            lines.append(f"requirepass {password}")
        if certificate is not None:
            lines += [
                f"tls-port {encrypted}",
                f"tls-cert-file {certificate.chain}",
                f"tls-key-file {certificate.key}",
                "tls-auth-clients no",
            ]
        configuration = folder / "redis.conf"
        configuration.write_text("\n".join(lines) + "\n")
        super().__init__("redis", [str(install.redis()), str(configuration)], folder, port)
