"""Loading without noise: no progress bars on a worker's log, no warning for classes that were meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


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
