"""Print a lock file without torch, torchvision and what their CUDA builds need: `without_torch.py requirements.lock`.

With `--names` print those two as the lock pins them, `torch==… torchvision==…`.
"""

import re
import sys
from pathlib import Path

BUILT_FOR_A_DEVICE = re.compile(r"^(torch|torchvision)==[0-9.]+", re.MULTILINE)
CUDA_ONLY = re.compile(r"^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")


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
    text = Path(sys.argv[1]).read_text()
    if "--names" in sys.argv[2:]:
        print(*(found[0] for found in BUILT_FOR_A_DEVICE.finditer(text)))
    else:
        print(without_torch(text), end="")
