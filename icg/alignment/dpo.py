"""Diffusion-DPO (Wallace et al., arXiv 2311.12908): for rewards without a gradient, such as a person's verdict.

From liked-SFT on: for an item and a user several covers are drawn, something scores them, the best and the worst make a
pair, once. Then the adapter is trained to explain the best better than the worst, by more than the starting one does:

    L = −log σ(−β [ (e_θ(x⁺) − e_0(x⁺)) − (e_θ(x⁻) − e_0(x⁻)) ]),   e(x) = | base(x_t, t, adapter) − target(x, ε, t) |²

with the same time and noise for both, e averaged over a latent's numbers. β takes in the paper's T ω.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from icg.adapter import Adapter
from icg.alignment.liked import conditioned, open_gates
from icg.alignment.material import Asking, Material
from icg.alignment.people import People
from icg.alignment.student import Student
from icg.alignment.watch import Watch
from icg.sampling import SamplerConfig, draw_latents
from icg.slots import in_slots
from icg.tiny.files import write_whole
from icg.training import Batch, Run, Task, fit

Scorer = Callable[[Tensor, int, str], NDArray[np.float32]]
"""(pictures [n, 3, height, width] in [0, 1], number of a person, title) -> scores [n]; need not be differentiable."""


@dataclass(frozen=True)
class DPOConfig:
    """How pairs are made and learned from."""

    pairs: int = 512  # items and users, drawn at random
    drawn: int = 8  # covers of each, of which the best and the worst are kept
    beta: float = 500.0  # how sharply the errors' difference is held to decide
    neutral: float = 0.1  # share of rows with the neutral user, held where they were
    gates: float = 0.1  # as in liked-SFT
    asking: Asking = field(default_factory=Asking.by_title)


def train(
    material: Material, people: People, score: Scorer, watch: Watch, config: DPOConfig, run: Run, signature: str
) -> Student:
    """Draw the pairs (kept in the folder), train to `run.steps` and return the EMA student.

    Args:
        material: its stack's adapter comes from liked-SFT and is trained in place.
        signature: names model, catalogue, choices and scorer.
    """
    open_gates(material.stack.adapter, config.gates)
    start = copy.deepcopy(material.stack.adapter).requires_grad_(False)
    signature = f"{start.config} {config} {signature}"
    pairs = kept_pairs(material, people, score, config, run.folder / "pairs.safetensors", run.generator(-1))
    student = Student(material.stack.mllm, material.stack.adapter).training_adapter()

    def draw(generator: torch.Generator) -> Batch:
        which = torch.randint(len(pairs["rows"]), (run.batch,), generator=generator)
        present = torch.rand(run.batch, generator=generator) >= config.neutral
        noise = material.draw_noise(run.batch, generator)
        return {**{name: value[which] for name, value in pairs.items()}, **noise, "present": present}

    def step_loss(model: Student, batch: Batch) -> dict[str, Tensor]:
        return loss(model, start, material, batch, config.beta)

    return fit(student, Task(draw, step_loss, watch.observer(run.folder)), run, signature)


def loss(model: Student, start: Adapter, material: Material, batch: Batch, beta: float) -> dict[str, Tensor]:
    """L; of the neutral user nobody preferred anything, so those rows are held where they were."""
    features = material.features(material.asked(batch))
    cond = conditioned(model, material, batch, features)
    before = material.condition(*start(features, batch["users"], batch["present"]))
    t, noise = batch["times"], batch["noise"]
    gains, drift = {}, torch.zeros(len(t), device=noise.device)
    for name in ("best", "worst"):
        noisy = material.path.noisy(batch[name], noise, t)
        wanted = material.path.target(batch[name], noise, t)
        predicted = material.base.predict(noisy, t, cond)
        with torch.no_grad():
            reference = material.base.predict(noisy, t, before)
        error, error_before = ((one - wanted).square().mean(dim=(1, 2, 3)) for one in (predicted, reference))
        gains[name] = error_before - error
        drift = drift + (predicted - reference).square().mean(dim=(1, 2, 3))
    margin = gains["best"] - gains["worst"]
    present = batch["present"].float()
    value = present * functional.softplus(-beta * margin) + (1 - present) * beta * drift
    return {"loss": value.mean(), "margin": margin.mean(), "right": (margin > 0).float().mean()}


def kept_pairs(
    material: Material, people: People, score: Scorer, config: DPOConfig, path: Path, generator: torch.Generator
) -> Batch:
    """What was drawn before, or pairs drawn and scored now: `best` and `worst` latents of items for `users`."""
    with PartialState(cpu=material.base.device.type == "cpu").main_process_first():
        if not path.exists():
            made = make_pairs(material, people, score, config, generator)
            write_whole(path, lambda partial: save_file(made, partial))
    return load_file(path)


@torch.no_grad()
def make_pairs(
    material: Material, people: People, score: Scorer, config: DPOConfig, generator: torch.Generator
) -> Batch:
    """Best and worst of `config.drawn` covers, as the service draws them, for random items and people."""
    stack, sampler = material.stack, material.stack.sampler
    rows = torch.randint(len(material.catalogue), (config.pairs,), generator=generator)
    batch = config.asking.draw(material.catalogue, rows, generator)
    numbers = torch.randint(len(people), (config.pairs,), generator=generator)
    batch["users"] = torch.from_numpy(people.whole)[numbers]
    seeds = torch.randint(2**62, (config.pairs, config.drawn), generator=generator).tolist()
    features = material.features(material.asked(batch))
    best, worst = [], []
    for place, row in enumerate(rows.tolist()):
        one = features[place : place + 1].expand(config.drawn, -1, -1)
        user = batch["users"][place].to(one.device).expand(config.drawn, -1)
        neutral, personal = (material.condition(*stack.adapter(one, who)) for who in (None, user))
        latents = draw_latents(material.base, neutral, personal, range(config.drawn), seeds[place], sampler)
        scores = score(_decoded(material, latents, sampler), int(numbers[place]), material.catalogue.titles[row])
        best.append(latents[int(scores.argmax())])
        worst.append(latents[int(scores.argmin())])
    return {**batch, "best": torch.stack(best).cpu(), "worst": torch.stack(worst).cpu()}


def _decoded(material: Material, latents: Tensor, sampler: SamplerConfig) -> Tensor:
    return in_slots(material.base.decode, sampler.slots, latents)
