"""Every family: the stock pipeline's picture, a user swap that shows, a gradient to every trainable tensor."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel

from icg.conditioning import FAMILIES, Base, Conditioning, base_of, load_base, repeat, select
from icg.exceptions import BadWeights, Unsupported
from icg.generator import CoverGenerator
from icg.item import Item
from icg.sampling import SamplerConfig, decode, draw_latents, get_scheduler

SIZES = {"Lumina2": 32, "Sana": 32}  # pixels a side, 16 for the others

every_family = pytest.mark.parametrize("family", [family.__name__ for family in FAMILIES])


def size_of(family: str) -> int:
    return SIZES.get(family, 16)


def sampler(family: str, **changes: float) -> SamplerConfig:
    size = size_of(family)
    return SamplerConfig(steps=4, slots=2, width=size, height=size, **changes)


def stock(base: Base, prompt: str, seed: int, size: int) -> np.ndarray:
    generator = [torch.Generator().manual_seed(seed)]
    return base.pipeline(
        [prompt],
        height=size,
        width=size,
        num_inference_steps=4,
        generator=generator,
        output_type="np",
        **base.unguided,
    ).images[0]


@every_family
def test_without_branch_it_is_the_stock_pipeline(bases: Callable[[str], Base], family: str):
    base, size, config = bases(family), size_of(family), sampler(family, branch=0.0)
    prompts = ["a lantern at night", "a whale"]
    own = base.text(prompts, size, size)
    drawn = decode(base, draw_latents(base, own, own, [0, 1], [7, 8], config), config).numpy().astype(float) / 255
    theirs = np.stack([stock(base, prompt, seed, size) for prompt, seed in zip(prompts, (7, 8), strict=True)])
    np.testing.assert_allclose(drawn, theirs, atol=1.5 / 255)
    assert drawn.std() > 0.01
    assert np.abs(theirs[0] - theirs[1]).mean() > 0.01


@every_family
def test_a_user_swap_shows_and_a_repeated_seed_does_not(bases, mllm, make_adapter, users, family):
    base = bases(family)
    config = sampler(family, branch=0.25, personalization=8.0)
    generator = CoverGenerator(base, mllm, make_adapter(base, mllm, 1.0), config)
    context = generator.encode([Item("a lantern at night")])
    first, second, neutral = (np.array(image) for image in generator.generate(context, [[*users[:2], None]], [7])[0])
    assert (first != second).mean() > 0.05
    assert (first != neutral).mean() > 0.05
    again = generator.generate(context, [[users[0]]], [7])[0][0]
    assert np.array_equal(np.array(again), first)


@every_family
def test_gradient_reaches_every_trainable_tensor(bases, mllm, make_adapter, users, picture, family):
    base, size = bases(family), size_of(family)
    adapter = make_adapter(base, mllm, 0.1)
    features = mllm.read([Item("a lantern", picture), Item("a whale")], adapter.meta)
    cond = base.condition(*adapter(features, torch.from_numpy(users[:2])), size, size)
    shape = base.latent_shape(size, size)
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    t = base.set_timesteps(get_scheduler(base, None), 4, shape)[1]
    base.predict(latents, t, cond).square().sum().backward()
    still = [name for name, value in adapter.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []
    assert all(parameter.grad is None for parameter in base.denoiser.parameters())


@every_family
def test_pictures_have_a_gradient_to_their_latents(bases, family):
    base, size = bases(family), size_of(family)
    latents = torch.randn(1, *base.latent_shape(size, size), requires_grad=True)
    pixels = base.decode(latents)
    assert pixels.shape == (1, 3, size, size)
    pixels.sum().backward()
    assert latents.grad is not None
    assert latents.grad.any()


@every_family
def test_a_cover_is_bit_equal_alone_and_in_company(bases, family):
    base, size, config = bases(family), size_of(family), sampler(family)
    own = base.text(["a lantern", "a whale"], size, size)
    together = draw_latents(base, own, select(own, [0, 1, 0, 1, 1]), [0, 0, 1, 1, 0], [7, 8], config)
    alone = draw_latents(base, select(own, [1]), select(own, [0]), [0], [8], config)
    assert torch.equal(together[2], alone[0])


@every_family
def test_encode_is_the_other_way_of_decode(bases, family):
    """A decoder of random weights inverts nothing; but it is handed what the encoder gave, all scaling undone."""
    base = copy.deepcopy(bases(family))
    side = 2 * base.pixels_per_latent * base.patch
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    latents = base.encode(images)
    assert latents.shape == (2, *base.latent_shape(side, side))
    assert latents.dtype == torch.float32
    raw = {}
    decode = base.vae.decode

    def remember(given, **kwargs):
        raw["latents"] = given
        return decode(given, **kwargs)

    base.vae.decode = remember
    base.decode(latents)
    encoded = base.vae.encode((images * 2 - 1)[:, :, None] if raw["latents"].ndim == 5 else images * 2 - 1)
    own = encoded.latent if "latent" in encoded else encoded.latent_dist.mean
    torch.testing.assert_close(raw["latents"], own, atol=1e-4, rtol=1e-4)


@every_family
def test_a_size_that_the_decoder_cannot_make_is_refused(bases, family):
    with pytest.raises(ValueError, match="17x16 pixels: both must be multiples of"):
        bases(family).latent_shape(17, 16)


def test_repeat_and_select_take_every_tensor_along():
    cond = Conditioning(torch.arange(2)[:, None, None], torch.arange(2)[:, None], {"mask": torch.arange(2)})
    twice = repeat(cond, 2)
    assert twice.tokens.flatten().tolist() == [0, 0, 1, 1]
    assert twice.pooled is not None
    assert twice.pooled.flatten().tolist() == [0, 0, 1, 1]
    assert twice.extra["mask"].tolist() == [0, 0, 1, 1]
    assert len(select(twice, slice(1, 4))) == 3


def test_an_unknown_pipeline_is_refused_by_name():
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    with pytest.raises(Unsupported, match="DDPMPipeline with UNet2DModel"):
        base_of(DDPMPipeline(unet, DDPMScheduler()))


def test_a_unet_that_wants_more_than_text_is_refused(bases):
    pipeline = bases("StableDiffusion").pipeline
    config = {**pipeline.unet.config, "in_channels": 9}
    inpainting = type(pipeline)(
        **{**pipeline.components, "unet": UNet2DConditionModel.from_config(config)}, requires_safety_checker=False
    )
    with pytest.raises(Unsupported, match="StableDiffusionPipeline with UNet2DConditionModel"):
        base_of(inpainting)


@pytest.mark.parametrize(("index", "says"), [(None, "No such file"), ("{", "Expecting"), ("{}", "names no class")])
def test_a_folder_without_a_pipeline_is_said_to_be_none(tmp_path, index, says):
    if index is not None:
        (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(BadWeights, match=rf"is no pipeline of diffusers.*{says}"):
        load_base(tmp_path)


@every_family
def test_saved_and_loaded_is_the_same_family(bases, family, tmp_path):
    base, size, config = bases(family), size_of(family), sampler(family)
    base.pipeline.save_pretrained(tmp_path)
    loaded = load_base(tmp_path)
    assert type(loaded) is type(base)
    own = base.text(["a lantern"], size, size)
    torch.testing.assert_close(
        draw_latents(loaded, own, own, [0], [7], config),
        draw_latents(base, own, own, [0], [7], config),
        atol=1e-4,
        rtol=1e-4,
    )
