"""A drawn stand-in for the emoji pictures, for tests that must run where the data is not."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from icg.evaluation.bench import Bench
from icg.evaluation.cases import readers
from icg.evaluation.emoji import Gallery, measure
from icg.evaluation.panel import Panel
from icg.evaluation.relevance import RelevanceConfig, RelevanceJudge, RelevanceModel, Titles
from icg.evaluation.second import SecondConfig, SecondJudge, SecondModel
from icg.evaluation.study import StudyConfig, study
from icg.evaluation.utility import Utility
from icg.evaluation.world import EvalConfig, World
from icg.generator import CoverGenerator
from icg.preference import Head
from icg.tiny.data import FAMILY, Pictures

STYLES = tuple(FAMILY)


def drawing(concept: int, style: int) -> Image.Image:
    """A polygon of its own shape, place and hue for each concept; colour, outline and filling by style."""
    rng = np.random.default_rng([concept, style])
    shape = np.random.default_rng([concept])
    image = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(image)
    corners = int(shape.integers(3, 8))
    angles = np.sort(shape.uniform(0, 2 * np.pi, corners))
    radius = shape.uniform(14, 28, corners) * rng.uniform(0.9, 1.05)
    centre = 32 + shape.uniform(-4, 4, 2) + rng.uniform(-1, 1, 2)
    points = [(centre[0] + r * np.cos(a), centre[1] + r * np.sin(a)) for r, a in zip(radius, angles, strict=True)]
    hue, value = (shape.random() + 0.07 * style) % 1, 0.35 + 0.06 * style
    colour = [tuple(int(255 * x) for x in colorsys.hsv_to_rgb(hue, s, value)) for s in (0.2 + 0.08 * style, 0.3)]
    pen.polygon(points, fill=colour[0], outline="black", width=int(style % 4) + int(rng.integers(2)))
    if style % 2:
        pen.ellipse((centre[0] - 6, centre[1] - 6, centre[0] + 6, centre[1] + 6), fill=colour[1])
    return image


def drawn(concepts: range, styles: int = len(STYLES)) -> Gallery:
    rows = [(concept, style) for concept in concepts for style in range(styles)]
    pictures = Pictures(
        np.stack([np.asarray(drawing(*row)) for row in rows]),
        np.array([f"c{concept}" for concept, _ in rows]),
        np.array([f"thing {concept}" for concept, _ in rows]),
        np.array([STYLES[style] for _, style in rows]),
    )
    return Gallery(pictures, measure(pictures), np.array([concept % 3 for concept, _ in rows]))


@pytest.fixture(scope="session")
def train() -> Gallery:
    return drawn(range(40))


@pytest.fixture(scope="session")
def unseen() -> Gallery:
    return drawn(range(100, 120))


CONFIG = EvalConfig(
    people=3,
    oracle_concepts=2,
    oracle=3,
    pairs=2,
    turns=2,
    practice=1,
    titles=2,
    guidance=2.0,
    study=StudyConfig(training=12, held_out=3, archetypes=2, training_choices=10),
)


@pytest.fixture
def bench(generator: CoverGenerator, train: Gallery, unseen: Gallery) -> Bench:
    """A small real generator, drawn pictures and judges that know nothing."""
    generator.sampler = replace(generator.sampler, steps=2, branch=0.5)
    made = study(train, CONFIG.study)
    torch.manual_seed(0)
    relevance = RelevanceJudge(
        RelevanceModel(RelevanceConfig((8, 8, 16, 16), embedding=32, concepts=4, words=("thing",)))
    )
    second = SecondJudge(SecondModel(SecondConfig(people=15, width=32, depth=1, patch=16)))
    within = made.standardise.joined(unseen.raw, unseen.pictures.concepts)
    titles = Titles.of(relevance, unseen, {})
    panel = Panel(unseen, Utility(made.people, within), relevance, titles, Titles.by_pixels(unseen), second)
    embeddings = np.random.default_rng(0).normal(size=(len(train), generator.dimension)).astype(np.float32)
    people = readers(made, embeddings, Head.start(generator.space, generator.dimension), count=3)

    def prefer(users: list, images: list[Image.Image]) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(len(users), len(images)))

    avoid = [frozenset({"noto"}), frozenset({"twemoji"}), frozenset({"noto"})]
    concepts = unseen.concepts()[:2]
    world = World(made, panel, unseen, concepts)
    return Bench(CONFIG, world, generator, prefer, people, avoid, {"liked_sft": generator})
