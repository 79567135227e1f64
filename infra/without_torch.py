"""Print a lock file without torch and what only its CUDA build needs: `without_torch.py requirements.lock`."""

import re
import sys
from pathlib import Path

CUDA_ONLY = re.compile(r"^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")


def without_torch(lock: str) -> str:
    """Drop whole entries: a requirement starts in the first column, its hashes and comments are indented."""
    kept: list[str] = []
    keep = True
    for line in lock.splitlines():
        if line and not line[0].isspace():
            keep = not CUDA_ONLY.match(line)
        if keep:
            kept.append(line)
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    print(without_torch(Path(sys.argv[1]).read_text()), end="")
