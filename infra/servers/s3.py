"""versitygw: S3 over a folder of this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.servers import install
from infra.servers.process import Process, free_port


@dataclass(frozen=True)
class Certificate:
    """PEM files of a server."""

    chain: Path
    key: Path


class S3(Process):
    """One gateway with one account."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        access_key: str = "icg-test",
        secret_key: str = "icg-test-secret",
        certificate: Certificate | None = None,
        iam: bool = False,
        within: Sequence[str] = (),
    ) -> None:
        """
        Args:
            folder: made if absent; the objects lie in its `buckets`.
            iam: accounts beside the root one, made by `versitygw admin`.
            within: a command that runs the one after it, in a namespace for instance.
        """
        port = port or free_port()
        self.access_key, self.secret_key = access_key, secret_key
        self.address = f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
        buckets = folder / "buckets"
        buckets.mkdir(parents=True, exist_ok=True)
        self.binary = install.versitygw()
        command = [*within, str(self.binary), "--port", f"127.0.0.1:{port}", "--quiet"]
        if certificate is not None:
            command += ["--cert", str(certificate.chain), "--key", str(certificate.key)]
        if iam:
            (folder / "iam").mkdir(exist_ok=True)
            command += ["--iam-dir", str(folder / "iam")]
        command.append("posix")
        if not _extended_attributes(buckets):
            (folder / "metadata").mkdir(exist_ok=True)
            command += ["--sidecar", str(folder / "metadata")]
        keys = {"ROOT_ACCESS_KEY": access_key, "ROOT_SECRET_KEY": secret_key}
        super().__init__("s3", [*command, str(buckets)], folder, port, keys)


def _extended_attributes(folder: Path) -> bool:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.setxattr(file.name, "user.icg", b"1")
            return True
        except OSError:
            return False
