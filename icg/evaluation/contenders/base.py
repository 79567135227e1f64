"""What every contender is given and what it hands back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from icg.evaluation.people import Floats
from icg.item import Item
from icg.sampling import SamplerConfig, shared_steps

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Reader:
    """A held-out person as contenders may know them: vectors and past choices, no taste and no label.

    Attributes:
        number: row of the study's population; for looking results up, not for drawing.
        vector: estimated from the person's choices.
        segment: vector of the nearest segment.
        other: vector of another held-out person, of another segment.
        chosen: pictures that they preferred,
        rejected: and those that they preferred them to, in the same order.
    """

    number: int
    vector: Vector
    segment: Vector
    other: Vector
    chosen: Sequence[Image.Image] = ()
    rejected: Sequence[Image.Image] = ()


@dataclass(frozen=True)
class Case:
    """An item of the evaluation.

    Attributes:
        concept: what it is; names its row in the judges.
        topic: row of `emoji.TOPICS`, as simulated people see it.
        title: None where the item is its reference alone.
        references: by reader's number, since a reference never comes from a reader's top two styles; empty where
            the item is its title alone. Readers with the same picture share the same object.
    """

    concept: str
    topic: int
    title: str | None
    references: Mapping[int, Image.Image] = field(default_factory=dict)

    def item(self, reader: Reader) -> Item:
        return Item(self.title, self.references.get(reader.number))

    def groups(self, readers: Sequence[Reader]) -> list[tuple[Item, list[int]]]:
        """Positions of the readers whose item is one and the same, so that it is read and drawn together."""
        found: dict[int, tuple[Item, list[int]]] = {}
        for position, reader in enumerate(readers):
            picture = self.references.get(reader.number)
            found.setdefault(id(picture), (Item(self.title, picture), []))[1].append(position)
        return list(found.values())


@dataclass(frozen=True)
class Drawn:
    """What a contender made of items x users."""

    images: list[list[Image.Image]]  # [items][users]
    evaluations: int  # rows of denoiser calls, an unconditional one counted like any
    seconds: float  # encode, denoise, decode and choice, all counted


Worth = Callable[[Case, Sequence[Reader], Sequence[Image.Image]], Floats]
"""[readers, images]: what pictures of one item are worth to them."""


class Contender(Protocol):
    """One signature for everybody."""

    @property
    def name(self) -> str: ...

    def draw(self, items: Sequence[Case], users: Sequence[Reader], seeds: Sequence[int]) -> Drawn:
        """A cover of every item for every user. `seeds`: one an item; the users of an item share its noise."""
        ...


class Generator(Protocol):
    """`icg.CoverGenerator`, as far as contenders use it."""

    sampler: SamplerConfig

    def encode(self, items: Sequence[Item]) -> Any: ...

    def generate(
        self, context: Any, vectors: Sequence[Sequence[Vector | None]], seeds: Sequence[int]
    ) -> list[list[Image.Image]]: ...


def evaluations(sampler: SamplerConfig, covers: int) -> int:
    """Rows of denoiser calls for so many covers of one item and one seed, their early steps shared."""
    if covers == 0:
        return 0
    shared = shared_steps(sampler.steps, sampler.branch)
    guided = shared_steps(sampler.steps, sampler.guided) if sampler.guidance > 1 else 0
    calls = [(2 if step < guided else 1) * (1 if step < shared else covers) for step in range(sampler.steps)]
    return sum(calls)


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Seconds since the block began."""
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start
