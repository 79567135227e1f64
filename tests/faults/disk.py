"""A small disk that can be full: a tmpfs in a mount namespace of its own, which is gone with us.

Being root is not needed where the kernel lets anybody make user namespaces.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

SIZE = 1 << 30
"""Bytes at most; it takes what is stored."""
TRIES = 50


class Disk:
    """Processes see it at `folder` if their command begins with `within`."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            OSError: no namespace, no tmpfs, or one without extended attributes, on this machine.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        # It ends when our end of the pipe closes, however we end.
        mounted = f'mount -t tmpfs -o size={SIZE} tmpfs "$1" && echo mounted && exec cat'
        try:
            self._holder = subprocess.Popen(
                ["unshare", *user, "--mount", "sh", "-c", mounted, "sh", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            assert self._holder.stdout is not None
            if self._holder.stdout.readline() != b"mounted\n":
                raise OSError("no tmpfs can be mounted in a namespace")
            spaces = ["--mount", *(["--user", "--preserve-credentials"] if user else [])]
            self.within = ["nsenter", f"--target={self._holder.pid}", *spaces, "--"]
            attribute = "import os, sys; os.setxattr(sys.argv[1], 'user.icg', b'1')"
            self._run(sys.executable, "-c", attribute, str(folder))
        except BaseException:
            self.close()
            raise

    def fill(self) -> None:
        """Not one more block, whatever was being written."""
        for _ in range(TRIES):
            now = os.statvfs(f"/proc/{self._holder.pid}/root{self.folder}")
            used = (now.f_blocks - now.f_bfree) * now.f_frsize
            with contextlib.suppress(OSError):  # somebody has written meanwhile
                self._run("mount", "-o", f"remount,size={max(used, now.f_frsize)}", str(self.folder))
                return
        raise OSError(f"{self.folder}: still growing")

    def free(self) -> None:
        self._run("mount", "-o", f"remount,size={SIZE}", str(self.folder))

    def close(self) -> None:
        if hasattr(self, "_holder"):
            self._holder.kill()
            self._holder.communicate()

    def _run(self, *command: str) -> None:
        done = subprocess.run([*self.within, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
