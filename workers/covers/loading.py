"""From a release to models ready to draw: fetched, checked, built, tried. A wrong release is refused with a reason.

Building happens beside the models in use, and the swap between batches: `prepare` may run anywhere and changes nothing,
what it returns runs on the generator's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from icg import CoverGenerator, Item, Judge, SamplerConfig
from icg.quality import quality
from icg.tuned import tuned
from workers.exceptions import BadPart
from workers.records import Part, Release, Rendition
from workers.releases import Releases
from workers.settings import Covers

log = logging.getLogger(__name__)

Vector = NDArray[np.float32]

NEEDED: tuple[Part, ...] = ("base", "mllm", "adapter", "rewards", "space", "preference")
"""Parts without which nothing can be drawn. Without `segments` there is only the neutral cover."""


class Generator(Protocol):
    """What drawing needs; `icg.CoverGenerator`, or a benchmark's stand-in that only sleeps."""

    @property
    def space(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    def encode(self, items: Sequence[Item]) -> Any: ...
    def generate(
        self, context: Any, vectors: Sequence[Sequence[Vector | None]], seeds: Sequence[int]
    ) -> list[list[Image.Image]]: ...
    def load_adapter(self, directory: str | Path, sampler: SamplerConfig | None = None) -> None: ...


class Refused(Exception):
    """The release must not be used; the worker keeps the one it has."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """One release, ready to draw. Two are the same only if they are the same object."""

    release: Release
    sampler: SamplerConfig
    generator: Generator
    judge: Judge
    segments: tuple[str, ...]
    space: str

    @property
    def number(self) -> int:
        return self.release.number


MakeGenerator = Callable[[Mapping[Part, Path], Covers], Generator]


def sampler_config(settings: Covers, adapter: Path) -> SamplerConfig:
    """As the adapter says, but for what the settings decide."""
    return tuned(
        adapter,
        steps=settings.steps,
        branch=settings.branch,
        guidance=settings.guidance,
        guided=settings.guided,
        personalization=settings.personalization,
        dtype=settings.dtype,
        slots=settings.slots,
        width=settings.width,
        height=settings.height,
    )


def sampler_record(sampler: SamplerConfig) -> dict[str, Any]:
    """The sampler's share of a `cover_id`; its size is in the rendition."""
    return {
        "steps": sampler.steps,
        "branch": sampler.branch,
        "scheduler": sampler.scheduler,
        "guidance": sampler.guidance,
        "guided": sampler.guided,
        "personalization": sampler.personalization,
        "dtype": sampler.dtype,
        "slots": sampler.slots,
    }


def rendition(settings: Covers) -> Rendition:
    return Rendition(width=settings.width, height=settings.height)


def make_generator(parts: Mapping[Part, Path], settings: Covers) -> Generator:
    sampler = sampler_config(settings, parts["adapter"])
    return CoverGenerator.from_parts(
        parts["base"], parts["mllm"], parts["adapter"], device=settings.device, sampler=sampler
    )


class Loader:
    """Turns releases into `Loaded`, sharing with the one in use whatever has not changed."""

    def __init__(self, settings: Covers, releases: Releases, make: MakeGenerator = make_generator) -> None:
        self._settings = settings
        self._releases = releases
        self._make = make

    def prepare(self, release: Release, current: Loaded | None) -> Callable[[], Loaded]:
        """Fetch, check and build. Blocks, for long where weights are large.

        Returns:
            What is left to do, to be called on the generator's thread between batches. It may raise `Refused`.

        Raises:
            Refused: hash, shape, NaN, space or a part is wrong.
            Fault: the store does not answer.
        """
        missing = [part for part in NEEDED if part not in release.parts]
        if missing:
            raise Refused(f"it names no {', '.join(missing)}")
        old: Mapping[Part, str] = current.release.parts if current else {}
        changed = {part for part, revision in release.parts.items() if old.get(part) != revision}
        try:
            self._check_spaces(release)
            folders = {part: self._releases.fetch(part, release.parts[part]) for part in NEEDED}
            for part in sorted(changed.intersection(NEEDED)):
                check_finite(folders[part], part)
            segments = self._segments(release)
            sampler = sampler_config(self._settings, folders["adapter"])
            rebuilt = None
            if current is None or changed & {"base", "mllm"}:
                rebuilt = self._make(folders, self._settings)
            # A release that only changes the head of the preference model, the most frequent one, swaps nothing heavy.
            if current is None or changed & {"rewards", "space"}:
                judge = Judge.from_parts(
                    folders["rewards"], folders["space"], folders["preference"], device=self._settings.device
                )
            else:
                judge = current.judge
        except (BadPart, ValueError, KeyError, OSError) as error:
            raise Refused(str(error) or type(error).__name__) from error

        def finish() -> Loaded:
            generator = rebuilt or (current.generator if current else None)
            assert generator is not None
            try:
                if rebuilt is None and "adapter" in changed:
                    generator.load_adapter(folders["adapter"], sampler)
                if generator.space != release.parts["space"]:
                    raise ValueError(f"its adapter is of space {generator.space[:12]}")
                if rebuilt is not None or "adapter" in changed:
                    self._try(generator)
                if "preference" in changed:
                    judge.load_preference(folders["preference"])
            except Exception as error:
                if rebuilt is None and "adapter" in changed and current is not None:
                    before = self._releases.fetch("adapter", current.release.parts["adapter"])
                    generator.load_adapter(before, current.sampler)
                raise Refused(str(error) or type(error).__name__) from error
            return Loaded(release, sampler, generator, judge, segments, release.parts["space"])

        return finish

    def _check_spaces(self, release: Release) -> None:
        space = release.parts["space"]
        parts: tuple[Part, ...] = ("adapter", "preference", "segments")
        for part in parts:
            if part not in release.parts:
                continue
            own = self._releases.card(part, release.parts[part]).space
            if own is not None and own != space:
                raise Refused(f"its {part} is of space {own[:12]}, its space is {space[:12]}")

    def _segments(self, release: Release) -> tuple[str, ...]:
        if (found := self._releases.segments(release)) is None:
            return ()
        if found.space != release.parts["space"]:
            raise Refused(f"its segments are of space {found.space[:12]}, its space is {release.parts['space'][:12]}")
        return tuple(segment.segment_id for segment in found.segments)

    def _try(self, generator: Generator) -> None:
        """Draw two small items, neutral and for somebody: what draws only rubbish is wrong, whatever its hashes say."""
        items = [Item(title="A red boat on the sea"), Item(title="The Lantern at Night")]
        somebody = np.full(generator.dimension, generator.dimension**-0.5, np.float32)
        drawn = generator.generate(generator.encode(items), [[None, somebody]] * 2, [1, 2])
        best = max(quality(image) for images in drawn for image in images)
        if best < self._settings.gate:
            raise Refused(f"the best of four trial covers has quality {best:.2f}, the gate is {self._settings.gate:g}")


def check_finite(folder: Path, part: str) -> None:
    """
    Raises:
        Refused: a weight is NaN or infinite.
    """
    import torch
    from safetensors import safe_open

    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (it is no dict and cannot be iterated)
                tensor = weights.get_tensor(name)
                # The extremes tell of any NaN or infinity, in a quarter of the time of isfinite().all().
                if tensor.is_floating_point() and tensor.numel() and not all(map(isfinite, torch.aminmax(tensor))):
                    raise Refused(f"its {part} holds NaN or infinity in {name}")
