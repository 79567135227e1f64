"""Every family: the stock pipeline's picture, a user swap that shows, a gradient to every trainable tensor."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from icg.conditioning import FAMILIES, Base, Conditioning, base_of, repeat, select
from icg.exceptions import Unsupported
from icg.generator import CoverGenerator
from icg.item import Item
from icg.sampling import SamplerConfig, decode, draw_latents

SIZE = 16
PLAIN = SamplerConfig(steps=4, branch=0.0, slots=2, width=SIZE, height=SIZE)

every_family = pytest.mark.parametrize("family", [family.__name__ for family in FAMILIES])


def stock(base: Base, prompts: list[str], seeds: list[int], **more: object) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return base.pipeline(
        prompts, height=SIZE, width=SIZE, num_inference_steps=4, generator=generators, output_type="np", **more
    ).images


@every_family
def test_without_branch_it_is_the_stock_pipeline(bases: Callable[[str], Base], family: str):
    base = bases(family)
    prompts = ["a lantern at night", "a whale"]
    own = base.text(prompts, SIZE, SIZE)
    latents = draw_latents(base, own, own, [0, 1], [7, 8], PLAIN)
    drawn = decode(base, latents, PLAIN).numpy().astype(float) / 255
    np.testing.assert_allclose(drawn, stock(base, prompts, [7, 8], **base.unguided), atol=1 / 255)
    assert drawn.std() > 0.01


@every_family
def test_a_user_swap_shows_and_a_repeated_seed_does_not(bases, mllm, make_adapter, users, family):
    base = bases(family)
    sampler = SamplerConfig(steps=4, slots=2, width=SIZE, height=SIZE, branch=0.25, personalization=3.0)
    generator = CoverGenerator(base, mllm, make_adapter(base, mllm, 1.0), sampler)
    context = generator.encode([Item("a lantern at night")])
    first, second, neutral = (np.array(image) for image in generator.generate(context, [[*users[:2], None]], [7])[0])
    assert (first != second).mean() > 0.05
    assert (first != neutral).mean() > 0.05
    again = generator.generate(context, [[users[0]]], [7])[0][0]
    assert np.array_equal(np.array(again), first)


@every_family
def test_gradient_reaches_every_trainable_tensor(bases, mllm, make_adapter, users, picture, family):
    base = bases(family)
    adapter = make_adapter(base, mllm, 0.1)
    features = mllm.read([Item("a lantern", picture), Item("a whale")], adapter.meta)
    cond = base.condition(*adapter(features, torch.from_numpy(users[:2])), SIZE, SIZE)
    latents = torch.randn(2, *base.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    scheduler = base.pipeline.scheduler
    t = base.set_timesteps(scheduler, 4, base.latent_shape(SIZE, SIZE))[1]
    base.predict(latents, t, cond).square().sum().backward()
    still = [name for name, value in adapter.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []
    assert all(parameter.grad is None for parameter in base.denoiser.parameters())


@every_family
def test_pictures_have_a_gradient_to_their_latents(bases, family):
    base = bases(family)
    latents = torch.randn(1, *base.latent_shape(SIZE, SIZE), requires_grad=True)
    pixels = base.decode(latents)
    assert pixels.shape == (1, 3, SIZE, SIZE)
    pixels.sum().backward()
    assert latents.grad is not None
    assert latents.grad.any()


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
