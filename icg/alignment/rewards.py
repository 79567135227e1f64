"""Reward back-propagation: covers are drawn, and the adapter is moved along the gradient of what they are worth.

A gradient through a whole trajectory costs its length in memory and explodes (Clark et al., arXiv 2309.17400). So the
covers are drawn without one, by the sampler and with its shared early steps, as they will be drawn in the service. Each
drawn latent x is noised again with *known* noise ε, to a random time t of the trajectory, and predicted once, with a
gradient. From the prediction the clean latent x̂ follows in closed form (`NoisePath.clean`). What
is decoded and judged lies between it and the x that is known:

    x + λ (x̂ − x),   λ = 1 − (σ_s / α_s) (α_t / σ_t)

which is a step from t to s by the prediction, and back by ε ("Direct-Align", Shen et al., arXiv 2509.06942). So the
judges see a finished picture and not the blur that one call makes of much noise.

Training draws all the way to personal (`personalization` 1), whatever the sampler says: how far to go is chosen of what
came out, and what is watched on the way is drawn as the sampler says.

Only the users' way into the adapter is trained. Measured on icg-tiny, with the body trained too: after 50 steps the
covers' relevance had fallen from 0.27 to 0.15, neutral ones included, before people differed much.

Times run from where an item's covers part, before which no user is heard, to three quarters of the trajectory, after
which little is left to decide; where covers part late, through the first half of what is their own. Covers that part
late hardly differ: on icg-tiny a quarter of the steps in common leaves five times the gain in reward that a half does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from icg.adapter import Adapter
from icg.alignment.liked import conditioned, open_gates, read
from icg.alignment.material import Asking, Material
from icg.alignment.objective import Objective
from icg.alignment.people import People
from icg.alignment.student import Student
from icg.alignment.watch import Watch
from icg.conditioning import Conditioning
from icg.sampling import begin, denoise, shared_steps, take
from icg.training import Batch, Run, Task, fit


@dataclass(frozen=True)
class RewardsConfig:
    """How the rewards are climbed."""

    users: int = 4  # people an item is drawn for; they share its noise and its early steps
    steps: int = 10  # of the sampler for these drawings; the covers are judged, not shown
    share: float = 0.7  # λ: how much of what is judged is the prediction, the rest is what was drawn
    pull: float = 1.0  # weight of the squared distance of predictions to the starting adapter's, in its own units
    neutral: float = 0.1  # share of rows with the neutral user, which the pull alone holds
    gates: float = 6.0  # where the users' way in begins, should the starting adapter know nobody; see `Block`
    body: bool = False  # train the adapter's body too, not the users' way in alone: neutral covers then move along
    meta: bool = False  # with the body, train the meta tokens too
    until: float = 0.75  # share of the trajectory that is trained, from the branch point on
    begin: int = 32  # covers whose rewards set the statistics before the first step
    asking: Asking = field(default_factory=Asking.by_title)


class Aligned(Student):
    """A student that carries the objective's running statistics, so that a resumed run has them."""

    def __init__(self, student: Student, objective: Objective) -> None:
        super().__init__(student.mllm, student.adapter)
        self.register_buffer("mean", objective.mean)
        self.register_buffer("square", objective.square)


def train(
    material: Material,
    people: People,
    objective: Objective,
    watch: Watch,
    config: RewardsConfig,
    run: Run,
    signature: str,
) -> Student:
    """Train to `run.steps` or until the judge sees no more gain; return the (best) EMA student.

    Args:
        material: its stack's adapter comes from liked-SFT; it is where training begins, and is trained in place.
        objective: on the base's device.
        run: with `watch="judge_gain"` and patience it stops early, on a judge that trains nothing.
        signature: names model, catalogue, choices and rewards.
    """
    if run.batch % (config.users * run.accumulate):
        raise ValueError(f"a batch of {run.batch} is no whole number of items with {config.users} people each")
    open_gates(material.stack.adapter, config.gates)
    start = copy.deepcopy(material.stack.adapter).requires_grad_(False)
    signature = f"{start.config} {config} {objective.weights} {signature}"
    student = Aligned(Student(material.stack.mllm, material.stack.adapter), objective)
    student = student.training_adapter(config.meta) if config.body else student.training_users()

    branch = material.stack.sampler.branch
    until = max(config.until, (1 + branch) / 2)

    def draw(generator: torch.Generator) -> Batch:
        items = torch.randint(len(material.catalogue), (run.batch // config.users,), generator=generator)
        asked = config.asking.draw(material.catalogue, items, generator)
        seeds = torch.randint(2**62, (len(items),), generator=generator)
        users = torch.stack([torch.randperm(len(people), generator=generator)[: config.users] for _ in items])
        histories = torch.randint(people.vectors.shape[1], (run.batch,), generator=generator)
        return {
            **{name: value.repeat_interleave(config.users, dim=0) for name, value in asked.items()},
            **material.draw_noise(run.batch, generator, branch, until),
            "seeds": seeds.repeat_interleave(config.users),
            "people": users.flatten(),
            "users": torch.from_numpy(people.vectors)[users.flatten(), histories],
            "present": torch.rand(run.batch, generator=generator) >= config.neutral,
        }

    def step_loss(model: Student, batch: Batch) -> dict[str, Tensor]:
        return loss(model, start, material, objective, batch, config)

    def stepped(model: Student, figures: Mapping[str, float]) -> None:
        objective.remember(figures)

    if not (run.folder / "checkpoint.pt").exists():
        begin_statistics(student, material, objective, draw(run.generator(-1)), config)
    return fit(student, Task(draw, step_loss, watch.observer(run.folder), stepped), run, signature)


def loss(
    model: Student, start: Adapter, material: Material, objective: Objective, batch: Batch, config: RewardsConfig
) -> dict[str, Tensor]:
    """The pull to `start` less what the covers are worth, and the moments of their rewards."""
    features = read(model, material, batch)
    cond = conditioned(model, material, batch, features)
    t, base, path = batch["times"], material.base, material.path
    drawn = rollout(model, material, batch, features, cond, config.steps)
    noisy = path.noisy(drawn, batch["noise"], t)
    predicted = base.predict(noisy, t, cond)
    clean = torch.lerp(drawn, path.clean(noisy, predicted, t), config.share)
    images = checkpoint(base.decode, clean, use_reentrant=False)
    rewards = objective.rewards(images, batch["people"], material.titles(batch))
    worth = (objective(rewards) * batch["present"]).mean()
    with torch.no_grad():
        features = material.features(material.asked(batch))
        before = material.condition(*start(features, batch["users"], batch["present"]))
        kept = base.predict(noisy, t, before)
    moved = (predicted - kept).square().mean(dim=(1, 2, 3)) / kept.square().mean(dim=(1, 2, 3)).clamp_min(1e-6)
    pull = moved.mean()
    return {"loss": config.pull * pull - worth, "worth": worth, "pull": pull, **objective.moments(rewards.detach())}


@torch.no_grad()
def begin_statistics(
    student: Student, material: Material, objective: Objective, batch: Batch, config: RewardsConfig
) -> None:
    """Set the objective's statistics from the first covers of a batch, as the student draws them now."""
    some = {name: value[: config.begin].to(material.base.device) for name, value in batch.items()}
    features = read(student, material, some)
    cond = conditioned(student, material, some, features)
    drawn = rollout(student, material, some, features, cond, config.steps)
    objective.begin(objective.rewards(material.base.decode(drawn), some["people"], material.titles(some)))


@torch.no_grad()
def rollout(
    model: Student, material: Material, batch: Batch, features: Tensor, cond: Conditioning, steps: int
) -> Tensor:
    """Latents [B, C, h, w] of covers as the service draws them: rows of one seed share their early, neutral steps.

    Args:
        features: [B, tokens, features], what the meta tokens read.
        cond: personal, B rows.
    """
    base, sampler = material.base, replace(material.stack.sampler, steps=steps)
    seeds = list(dict.fromkeys(batch["seeds"].tolist()))
    owners = [seeds.index(seed) for seed in batch["seeds"].tolist()]
    firsts = [owners.index(item) for item in range(len(seeds))]
    neutral = material.condition(*model.adapter(features[firsts]))
    rows, timesteps = begin(base, seeds, sampler)
    branch = shared_steps(len(timesteps), sampler.branch)
    rows = denoise(lambda latents, t: base.predict(latents, t, neutral), rows, timesteps[:branch])
    rows = take(rows, owners)
    return denoise(lambda latents, t: base.predict(latents, t, cond), rows, timesteps[branch:]).latents
