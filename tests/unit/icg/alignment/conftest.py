"""A small stack of real classes, a catalogue of drawn shapes, and people who like some colours."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from icg.adapter import Adapter, AdapterConfig
from icg.alignment.catalogue import Catalogue, Choices, read_catalogue
from icg.alignment.material import Material
from icg.alignment.objective import Objective, Weights
from icg.alignment.people import People, PeopleConfig, Taste, estimate_people
from icg.conditioning import Base
from icg.generator import CoverGenerator
from icg.mllm import MLLM
from icg.preference import Head
from icg.rewards.preference import CoverEncoder, PreferenceModel
from icg.rewards.relevance import Relevance
from icg.rewards.vision import pixels
from icg.sampling import SamplerConfig

COLOURS = ("red", "green", "blue")
SHAPES = ("disc", "box", "star", "drop")
DIMENSION = 64


def shape(number: int, colour: str) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).regular_polygon((32, 32, 26), number + 3, fill=colour)
    return image


@pytest.fixture(scope="session")
def catalogue_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows; the reference of a picture is the same shape in the next colour."""
    folder = tmp_path_factory.mktemp("catalogue")
    rows = []
    for number, name in enumerate(SHAPES):
        for place, colour in enumerate(COLOURS):
            shape(number, colour).save(folder / f"{name}-{colour}.png")
            another = COLOURS[(place + 1) % len(COLOURS)]
            rows.append({"title": f"a {name}", "image": f"{name}-{colour}.png", "reference": f"{name}-{another}.png"})
    path = folder / "catalogue.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.fixture(scope="session")
def catalogue(catalogue_file: Path) -> Catalogue:
    return read_catalogue(catalogue_file)


@pytest.fixture(scope="session")
def choices() -> Choices:
    """Six people; person p likes colour p % 3 better than the others, in every shape."""
    rng = np.random.default_rng(0)
    made = []
    for person in range(6):
        for _ in range(30):
            liked = person % 3
            other = (liked + 1 + rng.integers(2)) % 3
            first = 3 * rng.integers(len(SHAPES))
            made.append((person, first + liked, first + other))
    users, chosen, rejected = np.array(made, np.int64).T
    return Choices(users, chosen, rejected)


@pytest.fixture
def mllm(mllm: MLLM) -> MLLM:
    """One of its own for each test: the warm-up trains parts of it."""
    return copy.deepcopy(mllm)


def build_adapter(base: Base, mllm: MLLM) -> Adapter:
    torch.manual_seed(7)
    config = AdapterConfig(
        space="5" * 64,
        dimension=DIMENSION,
        features=mllm.width,
        output=base.width,
        pooled=base.pooled,
        tokens=4,
        width=32,
        layers=2,
        heads=2,
    )
    return Adapter(config)


@pytest.fixture
def make_material(bases: Callable[[str], Base], mllm: MLLM, catalogue: Catalogue) -> Callable[..., Material]:
    """Material of a family's tiny base and a fresh adapter of its own; every call gives the same weights."""

    def make(family: str = "StableDiffusion", gates: float = 0.0) -> Material:
        base = bases(family)
        adapter = build_adapter(base, mllm)
        adapter.set_gates(gates)
        side = 2 * base.pixels_per_latent * base.patch
        sampler = SamplerConfig(steps=3, slots=4, width=side, height=side)
        return Material(CoverGenerator(base, mllm, adapter, sampler), catalogue)

    return make


@pytest.fixture(scope="session")
def taste_model(tiny: Path) -> PreferenceModel:
    encoder = CoverEncoder.from_pretrained(tiny / "space")
    return PreferenceModel(encoder, Head.start("5" * 64, DIMENSION))


@pytest.fixture(scope="session")
def people(taste_model: PreferenceModel, catalogue: Catalogue, choices: Choices) -> People:
    images = pixels([catalogue.picture(row) for row in range(len(catalogue))])
    with torch.no_grad():
        embeddings = taste_model.encoder(images).numpy()
    return estimate_people(choices, Head.start("5" * 64, DIMENSION), embeddings, PeopleConfig(segments=3))


@pytest.fixture
def objective(tiny: Path, taste_model: PreferenceModel, people: People) -> Objective:
    relevance = Relevance.from_pretrained(tiny / "rewards" / "relevance")
    return Objective(Taste(taste_model, people), relevance, None, Weights())
