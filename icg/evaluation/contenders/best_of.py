"""Several shared covers, the best for each reader by the stack's own preference model: personalising by choosing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from icg.evaluation.contenders.base import Case, Drawn, Generator, Reader, clock, evaluations
from icg.evaluation.contenders.oracle import several
from icg.evaluation.people import Floats

Prefer = Callable[[Sequence[Reader], Sequence[Image.Image]], Floats]
"""What readers think of pictures, by what was learned and never by the true utility: [readers, pictures]."""


class BestOfShared:
    """The best of `count` neutral covers that all readers share.

    Args:
        count: covers drawn of an item; None: as many as the calls that ICG spends on these readers allow, at least one.
    """

    def __init__(self, generator: Generator, prefer: Prefer, count: int | None = 8) -> None:
        self.name = "best_of_8_at_icg_cost" if count is None else f"best_of_{count}"
        self.generator = generator
        self.prefer = prefer
        self.count = count

    def draw(self, items: Sequence[Case], users: Sequence[Reader], seeds: Sequence[int]) -> Drawn:
        images = []
        calls = 0
        sampler = self.generator.sampler
        with clock() as seconds:
            for case, seed in zip(items, seeds, strict=True):
                row: dict[int, Image.Image] = {}
                for item, positions in case.groups(users):
                    allowed = evaluations(sampler, len(positions)) // evaluations(sampler, 1)
                    count = max(1, allowed) if self.count is None else self.count
                    covers = several(self.generator, item, seed, count)
                    calls += count * evaluations(sampler, 1)
                    best = self.prefer([users[position] for position in positions], covers).argmax(axis=1)
                    row |= {position: covers[best[k]] for k, position in enumerate(positions)}
                images.append([row[position] for position in range(len(users))])
            return Drawn(images, calls, seconds())
