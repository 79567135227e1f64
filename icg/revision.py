"""By which content hash a part of a model is known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def revision(part: str, folder: Path, space: str | None = None) -> str:
    """The content hash by which releases know a part: sha256 over part, space and the sha256 of every file.

    The same sum as `workers.records.revision_of` (a test holds that): `icg` imports nothing of the workers.
    """
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    record = {"part": part, "space": space, "files": files}
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
