"""How an adapter wants to be drawn: `sampler.json` beside its weights, and so part of its revision.

The number of steps, the branch point, the guidance (how much, how long) and how far covers go from neutral to personal
are chosen on validation for one adapter; another adapter brings its own. What belongs to the machine and the use
(dtype, slots, size) is not in it.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from icg.exceptions import BadWeights
from icg.sampling import SamplerConfig

FILE = "sampler.json"
TUNED = ("steps", "branch", "guidance", "guided", "personalization", "scheduler")


def tuned(adapter: Path, **given: Any) -> SamplerConfig:
    """The sampler that an adapter's folder names, the usual one where it names none.

    Args:
        given: fields that are decided here, whatever the folder says; None: not decided.

    Raises:
        BadWeights: the file holds something else than a sampler's settings.
    """
    path = Path(adapter) / FILE
    told: Any = {}
    if os.path.lexists(path):  # a link that leads nowhere is wrong, not absent
        try:
            told = json.loads(path.read_text())
            if not isinstance(told, dict) or told.keys() - {*TUNED}:
                raise ValueError(f"other fields than {', '.join(TUNED)}")
            replace(SamplerConfig(), **told)
        except (OSError, ValueError, RecursionError) as error:
            raise BadWeights(f"the adapter's {FILE} is wrong: {error}") from None
    return replace(SamplerConfig(), **told | {name: value for name, value in given.items() if value is not None})


def save_tuned(adapter: Path, sampler: SamplerConfig) -> None:
    """Write `sampler.json`; the adapter is another revision then."""
    told = {name: getattr(sampler, name) for name in TUNED}
    (Path(adapter) / FILE).write_text(json.dumps(told, indent=2) + "\n")
