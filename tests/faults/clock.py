"""A process' wall clock, made to jump; its monotonic clock goes on, as under a correction by NTP.

Not libfaketime (0.9.10, tried): without its fake of the monotonic clock, Python's `time.sleep` fails under it with
EINVAL or sleeps for ever, because it takes off the offset from a deadline on a clock that it leaves alone. And it
reads a process' offset from the environment, while ours are forked.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from pathlib import Path

JUMPS = (-86_400, -300, -5, 5, 300, 86_400)
"""Seconds: within S3's and Kafka's tolerance (15 minutes, an hour) and far beyond it."""


def library(folder: Path) -> Path | None:
    """What such processes have to preload, compiled into a folder; None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(made), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return made


class Clock:
    """Of one process, or of all that follow its file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_bytes(struct.pack("q", 0))

    def jump(self, seconds: int) -> None:
        """So far away from the true time; 0: back again."""
        with self.file.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("q", seconds))


def follow(file: str) -> None:
    """In the process itself, which has preloaded `library`."""
    if ctypes.CDLL(None).clock_follow(os.fsencode(file)) != 0:
        raise OSError(f"{file} cannot be mapped")
