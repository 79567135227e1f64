"""An adapter for a base and an MLLM of one's own."""

import shutil

import numpy as np
import pytest

from icg.exceptions import BadWeights
from icg.generator import CoverGenerator
from icg.item import Item
from icg.own import init_adapter
from icg.preference import Head
from icg.sampling import SamplerConfig


@pytest.mark.parametrize("family", ["StableDiffusionXL", "StableDiffusion3"])
def test_a_fresh_adapter_fits_base_and_mllm(family, bases, mllm, tiny, tmp_path):
    base = bases(family)
    base.pipeline.save_pretrained(tmp_path / "base")
    mllm.save_pretrained(tmp_path / "mllm")
    shutil.copytree(tiny / "space", tmp_path / "space")
    config = init_adapter(tmp_path, tokens=5, context=3, width=32, layers=1, heads=2)
    assert (config.features, config.output, config.pooled) == (mllm.width, base.width, base.pooled)
    assert config.scale > 0
    assert Head.load(tmp_path / "preference").space == config.space
    sampler = SamplerConfig(steps=2, width=16, height=16, slots=2)
    generator = CoverGenerator.from_pretrained(tmp_path, sampler=sampler)
    somebody = np.ones(config.dimension, np.float32)
    [[plain, own]] = generator.generate(generator.encode([Item("a cat")]), [[None, somebody]], [1])
    assert np.array_equal(np.asarray(plain), np.asarray(own)), "its gates are shut until it is trained"
    with pytest.raises(BadWeights, match="adapter is there already"):
        init_adapter(tmp_path)


def test_a_missing_part_is_named(tmp_path):
    with pytest.raises(BadWeights, match="there is no base at"):
        init_adapter(tmp_path)
