import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import ImageOps

from icg.adapter import Adapter
from icg.generator import CoverGenerator
from icg.init import init_tiny, randomise
from icg.item import Item
from icg.preference import Head
from icg.revision import revision
from icg.rewards.preference import CoverEncoder
from icg.rewards.vision import pixels
from icg.sampling import SamplerConfig
from icg.tiny import shipped
from icg.tiny.files import SHIPPED
from tests.small import init_small
from workers.records import revision_of


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_six_parts_are_there(tiny):
    assert {path.name for path in tiny.iterdir()} == {"base", "mllm", "adapter", "rewards", "space", "preference"}
    assert {path.name for path in (tiny / "rewards").iterdir()} == {"relevance", "aesthetic"}


def test_the_same_seed_gives_the_same_bytes(tiny, tmp_path):
    init_small(tmp_path)
    assert hashes(tmp_path) == hashes(tiny)


def test_adapter_and_preference_name_the_revision_of_their_space(tiny):
    space = revision_of("space", None, hashes(tiny / "space"))
    assert revision("space", tiny / "space") == space
    assert Adapter.from_pretrained(tiny / "adapter").config.space == space
    assert Head.load(tiny / "preference").space == space


def test_segments_can_be_told_apart(tiny):
    generator = CoverGenerator.from_pretrained(tiny, sampler=SamplerConfig(steps=4))
    vectors = np.eye(64, dtype=np.float32)[:2]
    context = generator.encode([Item("The Lantern at Night")])
    covers = [np.array(cover, float) for cover in generator.generate(context, [[None, *vectors]], [1])[0]]
    assert np.abs(covers[1] - covers[2]).mean() > 2
    assert np.abs(covers[0] - covers[1]).mean() > 2


def test_the_space_tells_pictures_apart(tiny, picture):
    encoder = CoverEncoder.from_pretrained(tiny / "space")
    square = picture.resize((64, 64))
    vectors = encoder(pixels([square, ImageOps.invert(square), ImageOps.grayscale(square)]))
    assert (vectors @ vectors.T)[0, 1:].max() < 0.95


def test_nothing_is_pickled(tiny):
    assert {path.suffix for path in tiny.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".jinja", ".txt"}


def test_no_machine_path_is_written(tiny):
    for path in tiny.rglob("*.json"):
        assert "site-packages" not in path.read_text(), path
        json.loads(path.read_text())


def test_randomised_weights_have_deviation_of_their_inputs():
    module = torch.nn.Linear(400, 300)
    randomise(module, 0)
    assert module.weight.std().item() == pytest.approx(1 / 20, rel=0.01)
    assert not module.bias.any()


def test_the_shipped_weights_fit_their_bounds_and_bring_their_sampler(tmp_path):
    sizes = [path.stat().st_size for path in SHIPPED.glob("*.safetensors")]
    assert max(sizes) <= 15 * 2**20
    assert sum(sizes) <= 32 * 2**20
    init_tiny(tmp_path, weights=SHIPPED)
    assert (tmp_path / "adapter" / "sampler.json").read_bytes() == (SHIPPED / "sampler.json").read_bytes()
    shipped.write(tmp_path / "shipped")
    for part in ("base", "mllm", "adapter", "rewards", "space", "preference"):
        hint = "python -m icg.tiny.shipped"
        assert revision(part, tmp_path / "shipped" / part) == revision(part, tmp_path / part), hint
    generator = CoverGenerator.from_pretrained(tmp_path / "shipped")
    assert (generator.sampler.guidance, generator.sampler.guided) == (3.0, 0.67)
    assert (generator.sampler.steps, generator.sampler.scheduler) == (6, "DPMSolverMultistepScheduler")
    neutral, own = generator.generate(
        generator.encode([Item("a cat")]), [[None, np.eye(64, dtype=np.float32)[0]]], [1]
    )[0]
    assert np.abs(np.array(neutral, float) - np.array(own, float)).mean() > 0.1
