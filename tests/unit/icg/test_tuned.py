"""An adapter brings its own steps, branch point and guidance."""

from dataclasses import replace

import pytest

from icg.exceptions import BadWeights
from icg.generator import CoverGenerator
from icg.revision import revision
from icg.sampling import SamplerConfig
from icg.tuned import save_tuned, tuned


def test_an_adapter_says_how_it_is_drawn_and_what_is_given_decides(tmp_path):
    assert tuned(tmp_path) == SamplerConfig()
    before = revision("adapter", tmp_path)
    own = SamplerConfig(steps=12, branch=0.7, guidance=2.0, personalization=0.6, scheduler="DDIMScheduler")
    save_tuned(tmp_path, replace(own, slots=3, width=32))
    assert revision("adapter", tmp_path) != before
    assert tuned(tmp_path) == own
    assert tuned(tmp_path, steps=None, branch=0.0, slots=4) == replace(own, branch=0.0, slots=4)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"slots": 4}',
        '{"steps": 0}',
        '{"steps": "many"}',
        '{"branch": 1.5}',
        '{"personalization": NaN}',
        '{"scheduler": 5}',
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text):
    (tmp_path / "sampler.json").write_text(text)
    with pytest.raises(BadWeights, match=r"the adapter's sampler\.json is wrong"):
        tuned(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "dangling link", "deep"])
def test_a_file_that_is_none_is_refused(tmp_path, kind):
    path = tmp_path / "sampler.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "deep":
        path.write_text("[" * 100_000)
    else:
        path.symlink_to(tmp_path / "gone")
    with pytest.raises(BadWeights, match=r"the adapter's sampler\.json is wrong"):
        tuned(tmp_path)


def test_a_saved_generator_is_drawn_as_before(generator, tmp_path):
    generator.sampler = replace(generator.sampler, branch=0.25)
    generator.save_pretrained(tmp_path)
    again = CoverGenerator.from_pretrained(tmp_path)
    assert (again.sampler.steps, again.sampler.branch) == (6, 0.25)
    save_tuned(tmp_path / "adapter", SamplerConfig(steps=9))
    generator.load_adapter(tmp_path / "adapter", tuned(tmp_path / "adapter", width=16, height=16))
    assert (generator.sampler.steps, generator.sampler.width) == (9, 16)
