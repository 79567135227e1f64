import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from icg.exceptions import BadWeights
from icg.generator import CoverGenerator
from icg.item import Item
from icg.sampling import SamplerConfig


@pytest.fixture
def items(picture):
    return [Item("a lantern at night"), Item("a whale", picture), Item(None, picture)]


def draw(generator, items, vectors, seeds):
    covers = generator.generate(generator.encode(items), vectors, seeds)
    return [[np.array(cover) for cover in row] for row in covers]


def test_a_grid_of_covers(generator, items, users):
    covers = generator.generate(generator.encode(items), [[None, users[0]], [], [users[1]]], [1, 2, 3])
    assert [len(row) for row in covers] == [2, 0, 1]
    assert covers[0][0].size == (16, 16)
    assert covers[0][0].mode == "RGB"


def test_users_items_and_seeds_change_the_pixels(generator, items, users):
    own = draw(generator, items[:2], [[users[0], users[1], None]] * 2, [1, 1])
    assert not np.array_equal(own[0][0], own[0][1])
    assert not np.array_equal(own[0][0], own[0][2])
    assert not np.array_equal(own[0][0], own[1][0])
    assert not np.array_equal(own[0][0], draw(generator, items[:1], [[users[0]]], [2])[0][0])


def test_the_same_again_is_the_same(generator, items, users):
    first, second = (draw(generator, items, [[users[0], None]] * 3, [1, 2, 3]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_cover_drawn_alone_has_the_same_bytes(generator, items, users):
    together = draw(generator, items, [[None, *users], [None, *users[:3]], [users[5]]], [1, 2, 3])
    for item, number, vector in ((0, 0, None), (0, 4, users[3]), (1, 3, users[2]), (2, 0, users[5])):
        alone = draw(generator, [items[item]], [[vector]], [[1, 2, 3][item]])[0][0]
        assert np.array_equal(alone, together[item][number])


def test_zero_gates_give_everybody_the_neutral_cover(generator, items, users):
    generator.adapter.set_gates(0.0)
    neutral, personal = draw(generator, items[:1], [[None, users[0]]], [1])[0]
    assert np.array_equal(neutral, personal)


def test_personalization_zero_is_neutral(generator, items, users):
    generator.sampler = replace(generator.sampler, personalization=0.0)
    neutral, personal = draw(generator, items[:1], [[None, users[0]]], [1])[0]
    assert np.array_equal(neutral, personal)


def test_an_item_read_again_comes_from_memory(generator, items, monkeypatch):
    first = generator.encode(items)
    monkeypatch.setattr(generator.mllm, "read", None)
    assert torch.equal(generator.encode(items[::-1]).features, first.features.flip(0))


def test_a_slice_of_a_context(generator, items, users):
    context = generator.encode(items)
    part = generator.generate(context[1:2], [[users[0]]], [2])[0][0]
    whole = generator.generate(context, [[], [users[0]], []], [1, 2, 3])[1][0]
    assert part.tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("vectors", "seeds", "reason"),
    [
        ([[np.zeros(7, np.float32)]], [1], r"item 0 has shape \(7,\), \(8,\) is wanted"),
        ([[np.full(8, np.nan, np.float32)]], [1], "item 0 holds NaN"),
        ([[None], [None]], [1], "1 items, 2 lists of vectors and 1 seeds"),
        ([[None]], [-1], r"seed -1 is no whole number in \[0, 2\*\*63\)"),
        ([[None]], [1.5], r"seed 1\.5 is no whole number"),
        ([[None]], [True], r"seed True is no whole number"),
    ],
)
def test_wrong_arguments_are_named(generator, items, vectors, seeds, reason):
    context = generator.encode(items[:1])
    with pytest.raises(ValueError, match=reason):
        generator.generate(context, vectors, seeds)


def test_no_items_are_refused(generator):
    with pytest.raises(ValueError, match="no items"):
        generator.encode([])


def test_a_cover_of_an_impossible_size_is_refused(generator):
    with pytest.raises(ValueError, match="15x16 pixels"):
        CoverGenerator(generator.base, generator.mllm, generator.adapter, SamplerConfig(width=15, height=16))


def test_saved_and_loaded_draws_the_same(generator, items, users, tmp_path):
    generator.save_pretrained(tmp_path)
    loaded = CoverGenerator.from_pretrained(tmp_path, sampler=generator.sampler)
    assert loaded.space == generator.space
    assert loaded.dimension == 8
    vectors = [[None, users[0]]] * 3
    np.testing.assert_array_equal(draw(loaded, items, vectors, [1, 2, 3]), draw(generator, items, vectors, [1, 2, 3]))


def test_another_adapter_is_taken_whole(generator, make_adapter, items, users, tmp_path):
    before, old = generator.encode(items), draw(generator, items[:1], [[users[0]]], [1])
    make_adapter(generator.base, generator.mllm, 0.1, seed=11).save_pretrained(tmp_path)
    generator.load_adapter(tmp_path)
    with pytest.raises(ValueError, match="encoded with another adapter"):
        generator.generate(before, [[None]] * 3, [1, 2, 3])
    assert not np.array_equal(draw(generator, items[:1], [[users[0]]], [1]), old)


def test_a_bad_adapter_leaves_the_old_one(generator, make_adapter, items, tmp_path):
    old = draw(generator, items[:1], [[None]], [1])
    make_adapter(generator.base, generator.mllm, 0.1).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["meta"][0, 0] = float("inf")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(BadWeights, match="meta holds NaN or infinity"):
        generator.load_adapter(tmp_path)
    assert np.array_equal(draw(generator, items[:1], [[None]], [1]), old)


def test_an_adapter_of_another_base_is_refused(generator, bases, make_adapter, tmp_path):
    make_adapter(bases("StableDiffusionXL"), generator.mllm, 0.1).save_pretrained(tmp_path)
    with pytest.raises(BadWeights, match="output is 32, its MLLM and base want 16"):
        generator.load_adapter(tmp_path)


def test_a_missing_part_is_named(tmp_path):
    with pytest.raises(BadWeights, match="there is no base at"):
        CoverGenerator.from_pretrained(tmp_path)


def test_half_precision_draws_too(generator, items, users, tmp_path):
    generator.save_pretrained(tmp_path)
    sampler = replace(generator.sampler, dtype="bfloat16")
    half = CoverGenerator.from_pretrained(tmp_path, sampler=sampler)
    coarse = draw(half, items, [[None, users[0]]] * 3, [1, 2, 3])
    fine = draw(generator, items, [[None, users[0]]] * 3, [1, 2, 3])
    assert 0 < np.abs(np.array(coarse, float) - np.array(fine, float)).mean() < 8


def test_a_seed_of_numpy_is_the_same_seed(generator, items, users):
    plain, numpys = (draw(generator, items[:1], [[users[0]]], [seed])[0][0] for seed in (5, np.int64(5)))
    assert np.array_equal(plain, numpys)


@pytest.mark.parametrize(
    ("changes", "reason"), [({"scheduler": "EDMEulerScheduler"}, "cannot stand in"), ({"width": 17}, "multiples")]
)
def test_a_sampler_that_the_base_cannot_follow_is_refused_at_once(generator, changes, reason):
    sampler = replace(generator.sampler, **changes)
    with pytest.raises(ValueError, match=reason):
        CoverGenerator(generator.base, generator.mllm, generator.adapter, sampler)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("base/unet/diffusion_pytorch_model.safetensors", "the base at .* cannot be loaded"),
        ("base/scheduler/scheduler_config.json", "the base at .* cannot be loaded"),
        ("base/tokenizer/tokenizer.json", "the tokenizer of the base at .* knows no words"),
        ("mllm/model.safetensors", "the mllm at .* cannot be loaded"),
        ("mllm/config.json", "the mllm at .* cannot be loaded"),
    ],
)
def test_what_is_missing_or_cut_off_is_named(tiny_model, tmp_path, path, what):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    whole = (folder / path).read_bytes()
    (folder / path).unlink()
    with pytest.raises(BadWeights, match=what):
        CoverGenerator.from_pretrained(folder)
    if "tokenizer" not in path:
        (folder / path).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(BadWeights, match=what):
            CoverGenerator.from_pretrained(folder)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"title": 5}, "title is 5, a string is wanted"),
        ({"title": "half \ud83d"}, "half of a surrogate pair"),
        ({"image": "cat.png"}, r"image is 'cat\.png', a picture of Pillow is wanted"),
        ({"title": "  "}, "an item needs a title, an image or both"),
    ],
)
def test_what_is_no_item_is_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        Item(**given)
