"""The platform's own picture, the same that the others were given. No cover drawn, none personal."""

from __future__ import annotations

from collections.abc import Sequence

from icg.evaluation.contenders.base import Case, Drawn, Reader, clock


class ReferenceImage:
    """Raises ValueError for items without a reference."""

    name = "reference"

    def draw(self, items: Sequence[Case], users: Sequence[Reader], seeds: Sequence[int]) -> Drawn:
        with clock() as seconds:
            for case in items:
                if not case.references:
                    raise ValueError(f"item {case.concept} has no reference to show")
            return Drawn([[case.references[reader.number] for reader in users] for case in items], 0, seconds())
