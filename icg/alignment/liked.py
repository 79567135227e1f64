"""Liked-SFT: pictures that training users chose teach what their vectors mean.

Plain fine-tuning on chosen pictures would teach the adapter to denoise, and so to forget the guidance that the warm-up
put into it: its covers would be as blurred as unguided ones. What choices know beyond the title is only the difference
between the chosen picture and what the base would have said of any picture of that title. So that difference is added
to what the warmed-up adapter says:

    L = E | base(x_t, t, adapter(item, user)) − w |²
    w = base(x_t, t, warm(item)) + s (target(x, ε, t) − base(x_t, t, title))

The expectation of w is guidance towards the user: s = 1 is the plain denoising loss's shift, on top of the guided
prediction, more is bolder (Ho and Salimans, arXiv 2207.12598, with "this user" for the condition). The noise in
`target` has mean zero round its expectation and only costs steps.

Rows with the neutral user have s = 0: neutral stays what it was.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from icg.adapter import Adapter
from icg.alignment.catalogue import Choices
from icg.alignment.material import Asking, Material
from icg.alignment.people import People
from icg.alignment.student import Student
from icg.alignment.warmup import noised
from icg.alignment.watch import Watch
from icg.conditioning import Conditioning
from icg.training import Batch, Run, Task, fit


@dataclass(frozen=True)
class LikedConfig:
    """What users' choices teach."""

    strength: float = 2.0  # s: how far a user's chosen pictures pull
    neutral: float = 0.2  # share of rows with the neutral user
    gates: float = 6.0  # where the users' way in begins: at 0.1 a vector is hardly heard; see `Block`
    meta: bool = False  # train the meta tokens too: then the MLLM runs at every step
    asking: Asking = field(default_factory=Asking.by_title)


def train(
    material: Material,
    choices: Choices,
    people: People,
    watch: Watch,
    config: LikedConfig,
    run: Run,
    signature: str = "",
) -> Student:
    """Train to `run.steps` and return the EMA student.

    Args:
        material: of the catalogue that was chosen from; its stack's adapter is warmed up, and is trained in place.
        watch: what is drawn and judged on the way.
        signature: names model, catalogue and choices.
    """
    warm = copy.deepcopy(material.stack.adapter).requires_grad_(False)
    signature = f"{warm.config} {config} {signature}"
    open_gates(material.stack.adapter, config.gates)
    student = Student(material.stack.mllm, material.stack.adapter).training_adapter(config.meta)

    def draw(generator: torch.Generator) -> Batch:
        which = torch.from_numpy(people.shown)[torch.randint(len(people.shown), (run.batch,), generator=generator)]
        rows = torch.from_numpy(choices.chosen)[which]
        histories = torch.randint(people.vectors.shape[1], (run.batch,), generator=generator)
        users = torch.from_numpy(choices.users)[which]
        return {
            **config.asking.draw(material.catalogue, rows, generator),
            **material.draw_noise(run.batch, generator),
            "users": torch.from_numpy(people.vectors)[users, histories],
            "present": torch.rand(run.batch, generator=generator) >= config.neutral,
        }

    def step_loss(model: Student, batch: Batch) -> dict[str, Tensor]:
        return loss(model, warm, material, batch, config.strength)

    return fit(student, Task(draw, step_loss, watch.observer(run.folder)), run, signature)


def loss(model: Student, warm: Adapter, material: Material, batch: Batch, strength: float) -> dict[str, Tensor]:
    """Mean squared error against w; and its part from neutral rows, where it is all that has changed of neutral."""
    noisy = noised(material, batch)
    wanted = target(warm, material, noisy, batch, strength)
    cond = conditioned(model, material, batch, read(model, material, batch))
    error = (material.base.predict(noisy, batch["times"], cond) - wanted).square().mean(dim=(1, 2, 3))
    return {"loss": error.mean(), "neutral_drift": (error * ~batch["present"]).mean()}


def open_gates(adapter: Adapter, value: float) -> None:
    """Open the users' way in where it is shut; an adapter that knows people already stays as it is."""
    if not any(name.endswith(".gate") and parameter.any() for name, parameter in adapter.named_parameters()):
        adapter.set_gates(value)


def read(model: Student, material: Material, batch: Batch) -> Tensor:
    """What the student's meta tokens read of the batch's items, [B, tokens, features]."""
    asked = material.asked(batch)
    return model.features(material.prepared(asked)) if model.reads else material.features(asked)


def conditioned(model: Student, material: Material, batch: Batch, features: Tensor) -> Conditioning:
    """What the student makes of features and the batch's `users`, neutral where nobody is `present`."""
    return material.condition(*model.adapter(features, batch["users"], batch["present"]))


@torch.no_grad()
def target(warm: Adapter, material: Material, noisy: Tensor, batch: Batch, strength: float) -> Tensor:
    """w of the loss, [B, C, h, w]."""
    base, t = material.base, batch["times"]
    neutral = base.predict(noisy, t, material.condition(*warm(material.features(material.asked(batch)))))
    clean = material.latents(batch["rows"].tolist())
    surprise = material.path.target(clean, batch["noise"], t) - base.predict(noisy, t, material.called(batch))
    return neutral + strength * batch["present"][:, None, None, None] * surprise
