"""Denoise the segments of items, an item's segments sharing their early steps. Pure functions over a base.

The early steps of all of an item's covers run once, under the item's *neutral* conditioning; then each cover branches
off under its own. So a cover depends on no other segment, one can be redrawn alone, and the neutral one comes free.

The loop is ours and not diffusers' because growing the batch in `callback_on_step_end` breaks multistep schedulers,
which keep history of the old batch, and most families, which hold masks where a callback does not reach. Here a
scheduler is copied at the branch and every tensor of its history is taken along, row by row.

Every call of the denoiser has a fixed number of slots (see `icg.slots`), so that a cover's bytes do not depend on how
full the batch was.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor

from icg.conditioning.base import Base, Conditioning, select
from icg.slots import chunks, in_slots

Predict = Callable[[Tensor, Tensor], Tensor]


DISTILLED = ("LCMScheduler", "TCDScheduler")

BOUNDS: dict[str, tuple[type, float, float]] = {
    "steps": (Integral, 1, 1000),
    "branch": (Real, 0, 1),
    "guidance": (Real, 1, 100),
    "guided": (Real, 0, 1),
    "personalization": (Real, 0, 10),
    "slots": (Integral, 1, 4096),
    "width": (Integral, 1, 16384),
    "height": (Integral, 1, 16384),
}
"""What a sampler's numbers may be, both ends included. Far beyond what is of use, so that a slip is caught, no more."""


@dataclass(frozen=True)
class SamplerConfig:
    """All that decides how covers are drawn beside model and inputs."""

    steps: int = 20
    branch: float = 0.0  # share of the steps that an item's covers have in common
    guidance: float = 1.0  # 1: one unguided call a step
    guided: float = 1.0  # share of the steps, the first ones, that guidance above 1 is spent on
    personalization: float = 1.0  # 0: neutral for everybody
    scheduler: str | None = None  # a class of diffusers; None: the base's own
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of MLLM, denoiser and decoder
    slots: int = 8  # rows in every call of denoiser, adapter and decoder
    width: int = 64
    height: int = 64

    def __post_init__(self) -> None:
        for name, (kind, least, most) in BOUNDS.items():
            value: Any = getattr(self, name)
            if not is_number(value, kind) or not least <= value <= most:  # put so that NaN is refused
                number = "whole number" if kind is Integral else "number"
                raise ValueError(f"{name} is {value!r}, a {number} from {least:g} to {most:g} is wanted")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}, one of float32, bfloat16, float16 is wanted")
        if self.scheduler is not None:
            scheduler_class(self.scheduler)

    @property
    def shared_slots(self) -> int:
        """Rows in a call of the shared steps: there are fewer items than covers, 8 slots for 4 would idle by half."""
        return max(1, self.slots // 2)

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]


@dataclass
class Rows:
    """Half-drawn covers that stand at the same step, one row each.

    `scheduler` has the step's number and every scalar; its tensors of history are in `history`, by where they hang.
    """

    latents: Tensor  # [n, C, h, w], float32
    generators: list[torch.Generator]
    scheduler: Any
    history: dict[tuple[str, int | None], Tensor]  # (attribute, index in a list or None) -> [n, C, h, w]


def is_number(value: Any, kind: type) -> bool:
    """Whether it is an `Integral` or a `Real`, of numpy's too, and no bool, which Python takes for an int."""
    return isinstance(value, kind) and not isinstance(value, bool)


def scheduler_class(name: Any) -> Any:
    """A class of diffusers' schedulers; ValueError for any other name."""
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if "set_timesteps" not in dir(found):
        raise ValueError(f"{name!r} is no scheduler of diffusers")
    return found


def get_scheduler(base: Base, name: str | None) -> Any:
    """A fresh scheduler of the base's own class, or of another diffusers class with the base's settings.

    Raises:
        ValueError: there is none of that name, or it cannot drive what this base was trained for.
    """
    own = base.pipeline.scheduler
    kind = type(own) if name is None else scheduler_class(name)
    if kind is not type(own) and not _can_stand_in(kind, own):
        raise ValueError(f"{name} cannot stand in for this base's {type(own).__name__}")
    return kind.from_config(own.config)


def _can_stand_in(kind: Any, own: Any) -> bool:
    """Whether either names the other as compatible.

    Two exceptions: those that go backwards, or want the latents at another scale than the base was trained at (EDM),
    are named, too, and would draw what is no picture; those for distilled bases are not named, and draw.
    """
    one, other = kind.__name__, type(own).__name__
    if "Inverse" in one or one.startswith("EDM") != other.startswith("EDM"):
        return False
    if one.startswith("FlowMatch") and other.startswith("FlowMatch"):
        return True
    named = getattr(own, "_compatibles", [])
    return one in named or other in getattr(kind, "_compatibles", []) or (bool(named) and one in DISTILLED)


def get_noise(shape: tuple[int, ...], seed: int) -> tuple[Tensor, torch.Generator]:
    """An item's noise [C, h, w], and the generator as it stands after it, for schedulers that add noise.

    Drawn on the CPU whatever the device: one seed is one noise everywhere.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *shape), generator=generator)[0], generator


def shared_steps(total: int, branch: float) -> int:
    """How many of a trajectory's `total` calls the covers of an item have in common."""
    return min(round(total * branch), total)


@torch.no_grad()
def draw_latents(
    base: Base,
    neutral: Conditioning,
    personal: Conditioning,
    owners: Sequence[int],
    seeds: Sequence[int],
    config: SamplerConfig,
) -> Tensor:
    """Latents [covers, C, h, w] of every cover asked for.

    Args:
        neutral: one row an item.
        personal: one row a cover; for a neutral cover, its item's neutral row.
        owners: the item of each cover.
        seeds: one an item, 0 <= seed < 2**63.
    """
    rows, timesteps = begin(base, seeds, config)
    unguided = base.text([""], config.width, config.height) if config.guidance > 1 else None
    branch, guided = (shared_steps(len(timesteps), share) for share in (config.branch, config.guided))
    guidance = [config.guidance if unguided is not None and step < guided else 1.0 for step in range(len(timesteps))]
    if branch:
        rows = _advance(base, rows, neutral, unguided, timesteps[:branch], config.shared_slots, guidance[:branch])
    rows = take(rows, owners)
    return _advance(base, rows, personal, unguided, timesteps[branch:], config.slots, guidance[branch:]).latents


def begin(base: Base, seeds: Sequence[int], config: SamplerConfig) -> tuple[Rows, Tensor]:
    """Rows of nothing but noise, one a seed, and the timesteps that lie before them."""
    shape = base.latent_shape(config.width, config.height)
    scheduler = get_scheduler(base, config.scheduler)
    timesteps = base.set_timesteps(scheduler, config.steps, shape)
    drawn = [get_noise(shape, seed) for seed in seeds]
    latents = torch.stack([noise for noise, _ in drawn]).to(base.device) * _initial_sigma(scheduler)
    return Rows(latents, [generator for _, generator in drawn], scheduler, {}), timesteps


def _initial_sigma(scheduler: Any) -> Any:
    # Flow-matching schedulers have none: their noise has deviation 1.
    return getattr(scheduler, "init_noise_sigma", 1.0)


def _advance(
    base: Base,
    rows: Rows,
    cond: Conditioning,
    unguided: Conditioning | None,
    timesteps: Tensor,
    slots: int,
    guidance: Sequence[float],
) -> Rows:
    """All rows through `timesteps`, a fixed number of slots at a time, each step with its own guidance."""
    done = []
    for part in chunks(len(rows.latents), slots):
        index = [*part, *[part[-1]] * (slots - len(part))]
        padded = select(cond, index)
        free = None if unguided is None else select(unguided, [0] * slots)
        strengths = iter(guidance)

        def predict(
            latents: Tensor, t: Tensor, padded: Any = padded, free: Any = free, strengths: Any = strengths
        ) -> Tensor:
            output = base.predict(latents, t, padded)
            strength = next(strengths)
            if strength == 1:
                return output
            # Two calls and not one of twice the size: each stays within `slots` rows of memory.
            blank = base.predict(latents, t, free)
            return torch.lerp(blank, output, strength)

        done.append(_cut(denoise(predict, take(rows, index), timesteps), len(part)))
    return _join(done)


def denoise(predict: Predict, rows: Rows, timesteps: Tensor) -> Rows:
    """Rows through `timesteps`: the denoising loop itself."""
    scheduler, latents = _with_history(rows), rows.latents
    noisy = {"generator": rows.generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    scaled = "scale_model_input" in dir(scheduler)
    for t in timesteps:
        model_input = scheduler.scale_model_input(latents, t) if scaled else latents
        latents = scheduler.step(predict(model_input, t), t, latents, **noisy, return_dict=False)[0]
    return Rows(latents, rows.generators, scheduler, _history(scheduler, latents.shape))


def take(rows: Rows, index: Sequence[int]) -> Rows:
    """Rows by number, any of them any number of times: this is how covers branch off."""
    where = torch.tensor(index, device=rows.latents.device)
    return Rows(
        rows.latents[where],
        [_copy(rows.generators[number]) for number in index],
        rows.scheduler,
        {place: value[where] for place, value in rows.history.items()},
    )


def _cut(rows: Rows, count: int) -> Rows:
    history = {place: value[:count] for place, value in rows.history.items()}
    return Rows(rows.latents[:count], rows.generators[:count], rows.scheduler, history)


def _join(parts: Sequence[Rows]) -> Rows:
    first = parts[0]  # All stand at the same step: any scheduler's scalars will do.
    return Rows(
        torch.cat([part.latents for part in parts]),
        [generator for part in parts for generator in part.generators],
        first.scheduler,
        {place: torch.cat([part.history[place] for part in parts]) for place in first.history},
    )


def _copy(generator: torch.Generator) -> torch.Generator:
    twin = torch.Generator("cpu")
    twin.set_state(generator.get_state())
    return twin


def _history(scheduler: Any, shape: torch.Size) -> dict[tuple[str, int | None], Tensor]:
    """What a scheduler remembers of earlier steps: every tensor it holds with the latents' own shape."""
    found: dict[tuple[str, int | None], Tensor] = {}
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.shape == shape:
            found[name, None] = value
        elif isinstance(value, list):
            found |= {(name, i): x for i, x in enumerate(value) if isinstance(x, Tensor) and x.shape == shape}
    return found


def _with_history(rows: Rows) -> Any:
    scheduler = copy.deepcopy(rows.scheduler)
    for (name, index), value in rows.history.items():
        if index is None:
            setattr(scheduler, name, value)
        else:
            getattr(scheduler, name)[index] = value
    return scheduler


@torch.no_grad()
def decode(base: Base, latents: Tensor, config: SamplerConfig) -> Tensor:
    """Pictures [covers, height, width, 3], uint8 on the CPU."""
    pixels = in_slots(base.decode, config.slots, latents)
    return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
