import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from icg.adapter import Adapter, AdapterConfig
from icg.exceptions import BadWeights

CONFIG = AdapterConfig(
    space="5" * 64, dimension=8, features=24, output=16, pooled=12, tokens=5, width=32, layers=2, heads=2, scale=3.0
)


@pytest.fixture
def adapter() -> Adapter:
    torch.manual_seed(0)
    made = Adapter(CONFIG)
    made.set_gates(0.1)
    return made


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def users() -> torch.Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(2))


def test_shapes(adapter, features, users):
    tokens, pooled = adapter(features, users)
    assert tokens.shape == (3, 5, 16)
    assert pooled.shape == (3, 12)


def test_where_mllm_and_base_speak_alike_it_begins_near_what_the_prompt_says():
    torch.manual_seed(0)
    adapter = Adapter(replace(CONFIG, context=4, output=24, width=64))
    features = torch.randn(3, 9, 24)
    assert adapter.config.length == 9
    tokens, _ = adapter(features)
    assert tokens.shape == (3, 9, 24)
    assert torch.nn.functional.cosine_similarity(tokens, features, dim=-1).mean() > 0.9


def test_a_base_without_pooled_conditioning_gets_none(features):
    assert Adapter(replace(CONFIG, pooled=0))(features)[1] is None


def test_a_fresh_adapter_has_no_user_effect(features, users):
    fresh = Adapter(CONFIG)
    assert torch.equal(fresh(features, users)[0], fresh(features)[0])
    assert torch.equal(fresh(features, users)[1], fresh(features)[1])


def test_with_open_gates_users_differ(adapter, features, users):
    own, other = adapter(features, users)[0], adapter(features, users.flip(0))[0]
    assert (own[0] - other[0]).abs().max() > 1e-3
    assert torch.equal(own[1], other[1])  # the middle user kept their place


def test_absent_users_are_exactly_neutral(adapter, features, users):
    some, _ = adapter(features, users, torch.tensor([True, False, True]))
    neutral, _ = adapter(features)
    assert torch.equal(some[1], neutral[1])
    assert not torch.equal(some[0], neutral[0])


def test_a_zero_vector_is_neutral(adapter, features):
    assert torch.equal(adapter(features, torch.zeros(3, 8))[0], adapter(features)[0])


def test_no_vector_is_so_long_that_it_leaves_what_was_trained(adapter, features, users):
    directions = torch.nn.functional.normalize(users, dim=-1)
    neutral = adapter(features)[0]
    far = (adapter(features, 1e6 * directions)[0] - neutral).norm()
    unit = (adapter(features, directions)[0] - neutral).norm()
    assert far < 2 * unit


def test_personalization_scales_the_step(adapter, features, users):
    neutral, personal = adapter(features)[0], adapter(features, users)[0]
    assert torch.equal(adapter.personalise(features, users, personalization=0.0)[0], neutral)
    assert torch.equal(adapter.personalise(features, users, personalization=1.0)[0], personal)
    bold = adapter.personalise(features, users, personalization=2.0)[0]
    torch.testing.assert_close(bold - neutral, 2 * (personal - neutral))


def test_output_has_the_scale_of_the_base(adapter, features):
    assert adapter(features)[0].square().mean().sqrt().item() == pytest.approx(3.0, rel=0.01)


def test_gradient_reaches_every_tensor(adapter, features, users):
    tokens, pooled = adapter(features + adapter.meta, users)
    (tokens.square() * torch.arange(16)).sum().add((pooled * torch.arange(12)).sum()).backward()
    still = [name for name, value in adapter.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def test_at_zero_gates_only_the_gates_learn_from_users(features, users):
    fresh = Adapter(CONFIG)
    (fresh(features, users)[0].square() * torch.arange(16)).sum().backward()
    assert all(block.gate.grad.any() for block in fresh.blocks)
    assert not fresh.user_in.weight.grad.any()


def test_wrong_shapes_are_named(adapter, features, users):
    with pytest.raises(ValueError, match=r"\(3, 4, 24\) where the adapter takes \(B, 5, 24\)"):
        adapter(features[:, :4])
    with pytest.raises(ValueError, match=r"\(2, 8\) where \(3, 8\) is wanted"):
        adapter(features, users[:2])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 32 is no multiple of 5 heads"):
        replace(CONFIG, heads=5)


def test_saved_and_loaded_is_the_same(adapter, features, users, tmp_path):
    adapter.save_pretrained(tmp_path)
    loaded = Adapter.from_pretrained(tmp_path)
    assert loaded.config == CONFIG
    assert torch.equal(loaded(features, users)[0], adapter.eval()(features, users)[0])


def _spoil(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state["project_in.weight"].fill_(float("nan")), "project_in.weight holds NaN"),
        (
            lambda state: state.update({"meta": torch.zeros(4, 24)}),
            r"meta has shape \(4, 24\), its config says \(5, 24\)",
        ),
        (lambda state: state.pop("norm_out.bias"), "has no norm_out.bias"),
        (lambda state: state.update({"extra": torch.zeros(1)}), "a tensor extra that its config does not know"),
    ],
)
def test_bad_weights_are_refused(adapter, tmp_path, change, reason):
    adapter.save_pretrained(tmp_path)
    _spoil(tmp_path, change)
    with pytest.raises(BadWeights, match=reason):
        Adapter.from_pretrained(tmp_path)


def test_a_pickle_is_refused(adapter, tmp_path):
    adapter.save_pretrained(tmp_path)
    torch.save(adapter.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(BadWeights, match="cannot be read"):
        Adapter.from_pretrained(tmp_path)


def test_an_unknown_or_missing_config_is_refused(adapter, tmp_path):
    adapter.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "colour": 1}))
    with pytest.raises(BadWeights, match="colour"):
        Adapter.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadWeights, match=r"config\.json cannot be used"):
        Adapter.from_pretrained(tmp_path)


def test_a_very_long_user_is_as_bounded_as_a_long_one(adapter, features, users):
    long, longest = (adapter(features, users * length)[0] for length in (1e6, 1e30))
    torch.testing.assert_close(longest, long)
    assert not torch.equal(longest, adapter(features)[0])
