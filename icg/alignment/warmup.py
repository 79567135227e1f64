"""Warm-up: the adapter learns to stand in for the base's own text encoder, at the base's *guided* prediction.

    L = E | base(x_t, t, adapter(item)) − guided(x_t, t, title) |²

so that one unguided call a step is enough at inference (guidance distilled, Meng et al., arXiv 2210.03142). Nobody's
taste takes part, and no label: the catalogue's pictures are only what noise is added to.

It begins cheaply, without the base: the first tokens of the adapter are drawn to those of the base's text encoder,
place by place. Cross-attention does not mind places, so this only finds the region in which a base listens; the rest,
and what guidance adds, is learned through the base.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from icg.alignment import sheets
from icg.alignment.material import Asked, Asking, Material, evenly
from icg.alignment.student import Student
from icg.alignment.teacher import guided
from icg.conditioning import Conditioning, select
from icg.training import Batch, Run, Task, fit


@dataclass(frozen=True)
class WarmupConfig:
    """What the adapter is taught."""

    guidance: float = 3.0  # of the prediction that it learns to give in one call
    rescale: float = 0.7  # of that guidance
    matching: int = 400  # steps before the others, in which tokens alone are matched
    draws: int = 2  # rows of a batch that show the same item, at other times with other noise: it is read once
    also: tuple[str, ...] = ()  # parameters of the MLLM that are trained too, by how their names begin
    asking: Asking = field(default_factory=Asking)
    watched: int = 64  # rows of validation whose error is watched
    shown: int = 8  # titles on the contact sheet


def train(material: Material, validation: Material, config: WarmupConfig, run: Run, signature: str = "") -> Student:
    """Train to `run.steps` and return the EMA student; its users' way in is shut: a warmed-up adapter knows nobody.

    Args:
        material: of the catalogue; its stack's adapter is where training begins, and is trained in place.
        validation: of other items, the same stack.
        signature: names model and catalogue, so that no checkpoint goes on with others.

    Raises:
        ValueError: the batch is no multiple of the draws.
    """
    if run.batch % config.draws:
        raise ValueError(f"a batch of {run.batch} is no multiple of {config.draws} draws an item")
    stack = material.stack
    stack.adapter.set_gates(0.0)
    student = Student(stack.mllm, stack.adapter)

    def draw(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(material.catalogue), (run.batch // config.draws,), generator=generator)
        asked = config.asking.draw(material.catalogue, rows, generator)
        repeated = {name: value.repeat_interleave(config.draws, 0) for name, value in asked.items()}
        return {**repeated, **material.draw_noise(run.batch, generator)}

    def match(model: Student, batch: Batch) -> dict[str, Tensor]:
        tokens, pooled = _asked(model, material, batch)
        return {"loss": matching(tokens, pooled, material.called(batch))}

    def distil(model: Student, batch: Batch) -> dict[str, Tensor]:
        return {"loss": distillation(model, material, batch, config)}

    def observe(model: Student, step: int) -> dict[str, float]:
        sheets.save_titles(
            model,
            validation,
            run.folder / f"sheet-{step:06d}.png",
            titles=config.shown,
            guidance=config.guidance,
            rescale=config.rescale,
        )
        return errors(model, validation, config)

    signature = f"{stack.adapter.config} {replace(config, watched=0, shown=0)} {signature}"
    if config.matching:
        short = replace(run, folder=run.folder / "matching", steps=config.matching, cooldown=0, warmup=50)
        student.training_all_but_users(config.also)
        student = fit(student, Task(draw, match, lambda model, step: {}), short, signature)
    student.training_all_but_users(config.also)
    return fit(student, Task(draw, distil, observe), run, signature)


def matching(tokens: Tensor, pooled: Tensor | None, text: Conditioning) -> Tensor:
    """Squared distance of the first tokens [B, N, width] in units of the text's own square, the rows' mean.

    Where the base hides padding from its denoiser, padding has no say here either.
    """
    count = min(tokens.shape[1], text.tokens.shape[1])
    wanted = text.tokens[:, :count].to(tokens)
    mask = text.extra.get("mask", torch.ones(text.tokens.shape[:2], device=tokens.device))[:, :count, None].to(tokens)
    missed = (mask * (tokens[:, :count] - wanted).square()).sum(dim=(1, 2))
    error = missed / (mask * wanted.square()).sum(dim=(1, 2)).clamp_min(1e-6)
    if pooled is not None and text.pooled is not None:
        whole = text.pooled.to(pooled)
        error = error + (pooled - whole).square().sum(dim=1) / whole.square().sum(dim=1).clamp_min(1e-6)
    return error.mean()


def distillation(model: Student, material: Material, batch: Batch, config: WarmupConfig) -> Tensor:
    """Mean squared error against the guided prediction, over latents of `batch`'s rows at its times."""
    noisy = noised(material, batch)
    wanted = _wanted(material, noisy, batch, config)
    return functional.mse_loss(material.base.predict(noisy, batch["times"], _condition(model, material, batch)), wanted)


def noised(material: Material, batch: Batch) -> Tensor:
    """Latents of the batch's rows with its noise, at its times."""
    return material.path.noisy(material.latents(batch["rows"].tolist()), batch["noise"], batch["times"])


@torch.no_grad()
def errors(model: Student, material: Material, config: WarmupConfig) -> dict[str, float]:
    """Squared error of title alone, reference alone and both, each over that of the unconditional prediction.

    0: what the base guided by the title would have said; 1: no better than not asking at all.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(evenly(material.rows_with_reference(), config.watched))
    drawn = {**Asking(drop_reference=0, drop_title=0).draw(material.catalogue, rows, generator)}
    drawn = {**drawn, "text": torch.zeros_like(rows), **material.draw_noise(len(rows), generator)}
    nobody = torch.full_like(rows, -1)
    forms = {"title": (True, nobody), "reference": (False, drawn["reference"]), "both": (True, drawn["reference"])}
    sums = dict.fromkeys([*forms, "blank"], 0.0)
    for part in torch.arange(len(rows)).split(32):
        batch = {name: value[part].to(material.base.device) for name, value in drawn.items()}
        noisy = noised(material, batch)
        wanted = _wanted(material, noisy, batch, config)
        blank = material.base.predict(noisy, batch["times"], select(material.blank, [0] * len(part)))
        sums["blank"] += (blank - wanted).square().sum().item()
        for name, (titled, reference) in forms.items():
            asked = {**batch, "titled": torch.full_like(batch["rows"], titled), "reference": reference[part]}
            predicted = material.base.predict(noisy, batch["times"], _condition(model, material, asked))
            sums[name] += (predicted - wanted).square().sum().item()
    return {f"error_{name}": sums[name] / max(sums["blank"], 1e-12) for name in forms}


def _asked(model: Student, material: Material, batch: Batch) -> tuple[Tensor, Tensor | None]:
    asked: list[Asked] = material.asked(batch)
    apart = list(dict.fromkeys(asked))
    tokens, pooled = model.adapter(model.features(material.prepared(apart)))
    each = torch.tensor([apart.index(one) for one in asked], device=tokens.device)
    return tokens[each], None if pooled is None else pooled[each]


def _condition(model: Student, material: Material, batch: Batch) -> Conditioning:
    return material.condition(*_asked(model, material, batch))


def _wanted(material: Material, noisy: Tensor, batch: Batch, config: WarmupConfig) -> Tensor:
    text = material.called(batch)
    return guided(material.base, noisy, batch["times"], text, material.blank, config.guidance, config.rescale)
