"""Loading without noise, and with one kind of error.

No progress bars on a worker's log, no warning for classes that were meant; and whatever diffusers, transformers and
safetensors raise at files that are missing, cut off or of something else is `BadWeights`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from icg.exceptions import BadWeights, Unsupported


@contextmanager
def quietly() -> Iterator[None]:
    """Errors only, and no bars, from diffusers and transformers; as before afterwards."""
    before = [(library, library.get_verbosity()) for library in (diffusers_logging, transformers_logging)]
    bars = [library.is_progress_bar_enabled() for library, _ in before]
    for library, _ in before:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for (library, verbosity), bar in zip(before, bars, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()


@contextmanager
def loading(part: str, directory: str | Path) -> Iterator[None]:
    """
    Raises:
        BadWeights: naming the part, its folder and what was wrong.
        OSError: the disk's own trouble, which says nothing of the weights.
    """
    try:
        with quietly():
            yield
    except (BadWeights, Unsupported):
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise BadWeights(f"the {part} at {directory} cannot be loaded: {said[:300]}") from error
