"""Train the judges: `python -m icg.evaluation.train_judges relevance|second`. Resumable; settings fixed by this file.

Nothing here sees the test split: what is observed on the way is the validation part of train. Measured on two contended
threads at nice 19: see docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from icg.evaluation.emoji import CACHE, Gallery, gallery, keywords_of
from icg.evaluation.people import neighbours
from icg.evaluation.relevance import RelevanceConfig, RelevanceJudge, RelevanceModel, Titles, real_hits, words_of
from icg.evaluation.second import SecondConfig, SecondJudge, SecondModel, in_second_half
from icg.evaluation.study import Study, study
from icg.tiny.files import DATA
from icg.tiny.pixels import to_tensor
from icg.training import Batch, Run, Task, fit

BATCH = 96  # pictures a step, for the relevance judge
CONCEPTS = 12  # concepts a step, all of their pairs, for the second judge
TEMPERATURE = 14.0  # cosines to logits of the concepts
RARE = 4  # a word of fewer train concepts is not guessed
PAIRS = 8  # pairs of pictures of each concept that everybody chooses between, for the second judge


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, shift, recolour, blur and disturb: what stays is what the thing is. White stays white, [-1, 1]."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    n = len(pictures)
    angle, scale = uniform(-0.3, 0.3, n), uniform(0.85, 1.25, n)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = uniform(-0.12, 0.12, n, 2)
    turn = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = functional.affine_grid(turn, list(pictures.shape), align_corners=False)
    ink = (1 - pictures) / 2  # white is 0, as is what lies outside
    ink = functional.grid_sample(ink, grid, align_corners=False)
    grey = (uniform(0, 1, n) < 0.2)[:, None, None, None]
    ink = torch.where(grey, ink.mean(dim=1, keepdim=True).expand_as(ink), ink)
    ink = ink.clamp(1e-4, 1) ** uniform(0.6, 1.6, n, 3, 1, 1) * uniform(0.7, 1.1, n, 1, 1, 1)
    coarse = functional.interpolate(functional.avg_pool2d(ink, 2), scale_factor=2.0, mode="bilinear")
    ink = torch.where((uniform(0, 1, n) < 0.3)[:, None, None, None], coarse, ink)
    noise = torch.randn(ink.shape, generator=generator) * uniform(0, 0.06, n, 1, 1, 1)
    return (1 - 2 * (ink + noise)).clamp(-1, 1)


def vocabulary(titles: dict[str, str], keywords: dict[str, list[str]]) -> tuple[str, ...]:
    """Words of at least `RARE` concepts, in order."""
    counts = Counter(word for concept, title in titles.items() for word in words_of(title, keywords[concept]))
    return tuple(sorted(word for word, count in counts.items() if count >= RARE))


def titles_of(some: Gallery) -> dict[str, str]:
    return dict(zip(some.pictures.concepts.tolist(), some.pictures.titles.tolist(), strict=True))


def hit_rate(judge: RelevanceJudge, some: Gallery, titles: Titles) -> dict[str, float]:
    """hit@5 and hit@1 of real pictures, by the other families' pictures and by words; and the group's accuracy."""
    seen = judge.look(some.pictures.pixels)
    hit, first = real_hits(titles, some, seen.embeddings)
    concepts = some.pictures.concepts.tolist()
    return {
        "hit": hit,
        "hit_first": first,
        "hit_words": float(titles.hits(titles.spoken(seen.words), concepts).mean()),
        "group": float((seen.groups == some.topics).mean()),
        "chance": titles.chance,
    }


def relevance(
    train: Gallery,
    val: Gallery,
    keywords: dict[str, list[str]],
    folder: Path,
    steps: int,
    batch: int = BATCH,
    shape: RelevanceConfig | None = None,
) -> RelevanceJudge:
    """The relevance judge, on all train concepts; validation is observed on the way.

    Args:
        shape: widths, blocks and embedding; concepts and words follow from the pictures.
    """
    titles = titles_of(train)
    names = sorted(titles)
    config = dataclasses.replace(shape or RelevanceConfig(), concepts=len(names), words=vocabulary(titles, keywords))
    spoken = [words_of(titles[name], keywords[name]) for name in names]
    said = torch.tensor([[word in words for word in config.words] for words in spoken], dtype=torch.float32)
    concept = torch.tensor([names.index(name) for name in train.pictures.concepts.tolist()])
    pictures, topics = torch.from_numpy(train.pictures.pixels), torch.from_numpy(train.topics)

    def draw(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(pictures), (batch,), generator=generator)
        return {"rows": rows, "images": augment(to_tensor(pictures[rows]), generator)}

    def loss(model: RelevanceModel, drawn: Batch) -> dict[str, Tensor]:
        rows, features = drawn["rows"], model.features(drawn["images"])
        which = functional.cross_entropy(
            TEMPERATURE * model.cosines(model.embed(features)), concept[rows], label_smoothing=0.05
        )
        words = functional.binary_cross_entropy_with_logits(model.words(features), said[concept[rows]])
        group = functional.cross_entropy(model.groups(features), topics[rows])
        # A mean over some 900 words is about 0.05 from the start: 20 brings it beside the others.
        return {"loss": which + 20 * words + 0.3 * group}

    def observe(model: RelevanceModel, step: int) -> dict[str, float]:
        judge = RelevanceJudge(model)
        judge.save(folder)
        return {f"val_{name}": x for name, x in hit_rate(judge, val, Titles.of(judge, val, keywords)).items()}

    torch.manual_seed(0)
    run = _run(folder, steps, batch, rate=1.5e-3, weight_decay=0.05)
    signature = f"{dataclasses.replace(config, words=())} {len(config.words)} words {len(train)} pictures"
    return RelevanceJudge(fit(RelevanceModel(config), Task(draw, loss, observe), run, signature))


def second(
    made: Study, val: Gallery, folder: Path, steps: int, batch: int = CONCEPTS, shape: SecondConfig | None = None
) -> SecondJudge:
    """The second judge of taste, on its half of the train concepts; validation is observed on the way.

    Args:
        shape: width, depth, patch and factors; the people are the study's.
    """
    whole = made.train
    within = made.standardise.joined(val.raw, val.pictures.concepts)
    mine = np.array([in_second_half(concept) for concept in whole.pictures.concepts.tolist()])
    train = whole.where(mine)
    utilities = made.people.utilities(within.each(train.raw, train.pictures.concepts), train.topics)
    val_utilities = made.people.utilities(within.each(val.raw, val.pictures.concepts), val.topics)
    rng = np.random.default_rng(made.config.seed + 4)
    first, other = (
        np.concatenate(rows)
        for rows in zip(*(neighbours(train.pictures.concepts, rng) for _ in range(PAIRS)), strict=True)
    )
    wins = made.people.prefers_first((utilities[:, first] - utilities[:, other]).T, rng)  # [pairs, people]
    pictures, topics = torch.from_numpy(train.pictures.pixels), torch.from_numpy(train.topics)
    names, concept = np.unique(train.pictures.concepts[first], return_inverse=True)
    pairs_of = [torch.from_numpy(np.flatnonzero(concept == row)) for row in range(len(names))]
    one, two, chosen = torch.from_numpy(first), torch.from_numpy(other), torch.from_numpy(wins)

    def draw(generator: torch.Generator) -> Batch:
        return {"concepts": torch.randperm(len(names), generator=generator)[:batch]}

    def loss(model: SecondModel, drawn: Batch) -> dict[str, Tensor]:
        pairs = torch.cat([pairs_of[row] for row in drawn["concepts"].tolist()])
        rows, place = torch.unique(torch.cat([one[pairs], two[pairs]]), return_inverse=True)
        scores = model.scores(model(to_tensor(pictures[rows])), topics[rows])
        margin = scores[place[: len(pairs)]] - scores[place[len(pairs) :]]
        sign = 2 * chosen[pairs].float() - 1
        return {"loss": functional.softplus(-sign * margin).mean()}

    def observe(model: SecondModel, step: int) -> dict[str, float]:
        judge = SecondJudge(model)
        judge.save(folder)
        scores = judge.utilities(val.pictures.pixels, val.topics)
        a, b = neighbours(val.pictures.concepts, np.random.default_rng(0))
        agree = np.sign(scores[:, a] - scores[:, b]) == np.sign(val_utilities[:, a] - val_utilities[:, b])
        return {"val_agrees_with_u": float(agree.mean())}

    torch.manual_seed(1)
    run = _run(folder, steps, batch, rate=1e-3, weight_decay=0.02)
    config = dataclasses.replace(shape or SecondConfig(), people=len(made.people.general))
    signature = f"{config} {made.config} {len(train)} pictures"
    return SecondJudge(fit(SecondModel(config), Task(draw, loss, observe), run, signature))


def _run(folder: Path, steps: int, batch: int, rate: float, weight_decay: float) -> Run:
    return Run(
        folder,
        steps,
        batch,
        rate,
        warmup=100,
        cooldown=steps // 3,
        weight_decay=weight_decay,
        ema=0.995,
        observe_seconds=240,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("judge", choices=["relevance", "second"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--folder", type=Path, help="checkpoint, log and weights; under the cache by default")
    parser.add_argument("--steps", type=int, help="optimizer steps in all")
    given = parser.parse_args()
    folder = given.folder or CACHE / given.judge
    train, val = gallery("train", data=given.data), gallery("val", data=given.data)
    if given.judge == "relevance":
        relevance(train, val, keywords_of(given.data), folder, given.steps or 1500)
    else:
        second(study(train), val, folder, given.steps or 1200)


if __name__ == "__main__":
    main()
