"""ICG: covers of an item for people of different taste, from one frozen diffusion model.

`import icg` loads nothing heavy: a public name is imported when it is first used (PEP 562).

    from icg import CoverGenerator, Item
    generator = CoverGenerator.from_pretrained("icg-tiny")
    context = generator.encode([Item("The Lantern at Night")])
    covers = generator.generate(context, vectors=[[None, vector]], seeds=[7])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from icg.exceptions import BadWeights as BadWeights
    from icg.exceptions import Unsupported as Unsupported
    from icg.generator import Context as Context
    from icg.generator import CoverGenerator as CoverGenerator
    from icg.init import init_tiny as init_tiny
    from icg.item import Item as Item
    from icg.preference import Head as Head
    from icg.rewards import Judge as Judge
    from icg.sampling import SamplerConfig as SamplerConfig

_HOMES = {
    "BadWeights": "icg.exceptions",
    "Context": "icg.generator",
    "CoverGenerator": "icg.generator",
    "Head": "icg.preference",
    "Item": "icg.item",
    "Judge": "icg.rewards",
    "SamplerConfig": "icg.sampling",
    "Unsupported": "icg.exceptions",
    "init_tiny": "icg.init",
}

__all__ = [*sorted(_HOMES)]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'icg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
